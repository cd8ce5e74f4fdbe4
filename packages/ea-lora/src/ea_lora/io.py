"""LoRA files: read in any layout with every check that needs no model, and written in one (layouts.py).

Shape legend: R rank, I inputs and O outputs of the layer.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ea_lora import layouts
from ea_lora.keys import PARTS, Part, Role, relative_of_lora, split_key, split_name
from ea_lora.layouts import Layout
from ea_runtime.errors import UserError
from ea_runtime.safe_files import is_file, quote, read_json
from ea_runtime.safe_weights import PartWeights, is_pickle, iter_tensors, read_header

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: a path is shown in errors up to this length
MAX_PATH = 300
#: no weight changes by more than float16 can hold; what training gives is below 10
_LARGEST_CHANGE = 65504.0
#: where sd-webui's first hash of a LoRA begins and how many bytes it covers
_LEGACY_START, _LEGACY_BYTES = 0x100000, 0x10000
#: metadata that follows from the tensors and the layout
_COMPUTED = ("sshs_model_hash", "sshs_legacy_hash", "format", layouts.DIFFUSERS_KEY, layouts.ALPHA_KEY)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One layer of a LoRA; the change of the module's weight is `scale * up @ down`.

    name: as the file has it. part, path: which network and module; a path may have `_` where the module has
    `.`.
    down: (R, I). up: (O, R). Both may end in dimensions of 1 (convolutions). alpha: one number, or None: R.
    """

    name: str
    part: Part
    path: str
    down: Tensor
    up: Tensor
    alpha: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else float(self.alpha) / self.rank

    @property
    def num_inputs(self) -> int:
        return self.down.shape[1]

    @property
    def num_outputs(self) -> int:
        return self.up.shape[0]

    def matrices(self) -> tuple[Tensor, Tensor]:
        """down (R, I) and up (O, R) without the convolution's dimensions of 1, views."""
        return self.down.flatten(1), self.up.flatten(1)

    def delta(self) -> Tensor:
        """The change of the weight, (O, I) in float32 (float64 where the file is)."""
        down, up = self.matrices()
        dtype = torch.promote_types(down.dtype, torch.float32)
        return self.scale * (up.to(dtype) @ down.to(dtype))


@dataclass(frozen=True, slots=True, eq=False)
class LoraFile:
    """A LoRA as it lies on disk, checked.

    path: the file, or peft's folder. layers: in the order of their names. metadata: text by key. layout: how its
    tensors are named. notes: lines for the user.
    """

    path: Path
    layers: tuple[Layer, ...]
    metadata: Mapping[str, str]
    layout: Layout = "kohya"
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files that it lies in."""
        return weight_files(self.path)

    def of_part(self, part: Part) -> list[Layer]:
        return [layer for layer in self.layers if layer.part == part]


def weight_files(path: Path) -> tuple[Path, ...]:
    """A file itself; of peft's folder the adapter's weights, and its text encoder's where there are any."""
    if not path.is_dir():
        return (path,)
    names = (layouts.WEIGHTS_NAME, f"{layouts.TEXT_FOLDER}/{layouts.WEIGHTS_NAME}")
    return tuple(path / name for name in names if is_file(path / name))


def read_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Read and check a LoRA: a .safetensors file of any layout, or a folder of peft's.

    Every layer has a down and an up matrix of one rank above 0, all numbers are finite floats, alpha is above
    0, and no tensor is left over. Nothing is unpickled.

    Raises UserError, one line: no such file, empty, a pickle, damaged, no LoRA, a relative of LoRA, or any of
    the above.
    """
    file = Path(path)
    found = [_read_one(one, path) for one in weight_files(file) or (file,)]
    layers = tuple(sorted((layer for one in found for layer in one.layers), key=lambda layer: layer.name))
    metadata = {key: value for one in reversed(found) for key, value in one.metadata.items()}
    notes = tuple(note for one in found for note in one.notes)
    return LoraFile(file, layers, metadata, found[0].layout, notes)


def _read_one(file: Path, given: str | os.PathLike[str]) -> LoraFile:
    label = f"LoRA file {quote(str(file if Path(given).is_dir() else given), MAX_PATH)}"
    weights = _read_header(file, label)
    tensors = dict(iter_tensors(weights, weights.tensors))
    layout = layouts.layout_of(tensors)
    groups = _group(tensors, label, layout)
    alphas = _alphas(file, weights.metadata, label) if layout in ("peft", "diffusers") else {}
    is_text = file.parent.name == layouts.TEXT_FOLDER and layout == "peft"
    layers, without = [], 0
    for name, roles in groups.items():
        layer = _layer(name, roles, label)
        if is_text:
            layer = replace(layer, part="text")
        if layer.alpha is None and layout in ("peft", "diffusers"):
            found = alphas[layer.part].of(layer.path, layer.rank) if layer.part in alphas else None
            without += found is None
            layer = replace(layer, alpha=_alpha_tensor(found, layer, weights.metadata))
            _check_bound(layer, f"{label}: layer {quote(name)}")
        layers.append(layer)
    notes = [f"{label} tells no alpha for {without} layers: their rank is taken"] if without else []
    return LoraFile(file, tuple(layers), dict(weights.metadata), layout, tuple(notes))


def _alphas(file: Path, metadata: Mapping[str, str], label: str) -> dict[Part, layouts.Alphas]:
    """Where a file in peft's way keeps alpha: its header, or the config beside it."""
    found = layouts.diffusers_configs(metadata, label)
    config = file.with_name(layouts.CONFIG_NAME)
    if found or file.name != layouts.WEIGHTS_NAME or not is_file(config):
        return found
    alphas = layouts.Alphas(read_json(file.parent, layouts.CONFIG_NAME), f"{quote(str(config), MAX_PATH)}")
    return dict.fromkeys(PARTS, alphas)


def _alpha_tensor(value: float | None, layer: Layer, metadata: Mapping[str, str]) -> Tensor | None:
    """alpha as a tensor of the dtype that it had before a conversion."""
    record = layouts.read_alpha_record(metadata)
    kind = record.get("others", {}).get(f"{layer.part}:{layer.path}", record.get("dtype", "float32"))
    if value is None or kind == "none":
        return None
    known = {str(dtype)[6:]: dtype for dtype in _FLOATS}
    return torch.tensor(value, dtype=known.get(kind, torch.float32))


def write_lora(
    path: str | os.PathLike[str],
    layers: Iterable[Layer],
    metadata: Mapping[str, str] | None = None,
    layout: Layout = "kohya",
) -> None:
    """Write layers, as V2 names them or in another layout, with the hashes that other tools look for.

    path: a file, written whole or not at all; for "peft" a folder. metadata: text by key; keys of training
    begin with `ss_`, as kohya's. `sshs_*` are computed.
    Raises UserError where two layers have one name or the file cannot be written.
    """
    layers = list(layers)
    if not layers:
        raise UserError("`layers` must hold at least one layer, got none")
    own = {key: value for key, value in (metadata or {}).items() if key not in _COMPUTED}
    if layout in ("peft", "diffusers"):
        own |= {"format": "pt", layouts.ALPHA_KEY: layouts.alpha_record(layers)}
    if layout == "diffusers":
        own[layouts.DIFFUSERS_KEY] = layouts.diffusers_metadata(layers)
    if layout != "peft":
        _write(Path(path), _file_bytes(layers, own, layout))
        return
    folders = {"denoiser": Path(path), "text": Path(path) / layouts.TEXT_FOLDER}
    for part, folder in folders.items():
        members = [layer for layer in layers if layer.part == part]
        if members:
            config = {"peft_type": "LORA", "inference_mode": True, **layouts.adapter_config(members)}
            _write(folder / layouts.CONFIG_NAME, json.dumps(config, indent=2).encode() + b"\n")
            _write(folder / layouts.WEIGHTS_NAME, _file_bytes(members, own, layout))


def _file_bytes(layers: Iterable[Layer], own: Mapping[str, str], layout: Layout) -> bytes:
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        down, up, alpha = layouts.tensor_names(layout, layer.part, layer.path)
        if down in tensors:
            raise UserError(
                f"two layers would be written as {quote(down.rpartition('.lora_')[0])}; give each module one layer"
            )
        tensors[down], tensors[up] = layer.down.contiguous(), layer.up.contiguous()
        if alpha is not None and layer.alpha is not None:
            tensors[alpha] = layer.alpha
    body = save(tensors)
    # kohya's rule: hashes must not change when somebody edits what is not `ss_` metadata
    hashed = _with_metadata(body, {key: value for key, value in own.items() if key.startswith("ss_")})
    return _with_metadata(body, {**own, **content_hashes(hashed)})


def content_hashes(data: bytes) -> dict[str, str]:
    """`sshs_model_hash` (sha256 of the tensors) and `sshs_legacy_hash` of a file with `ss_` metadata only."""
    start = 8 + int.from_bytes(data[:8], "little")
    legacy = data[_LEGACY_START : _LEGACY_START + _LEGACY_BYTES]
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(data)[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(legacy).hexdigest()[:8],
    }


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """The file with this metadata, sorted: safetensors itself writes it in another order at each run."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    named = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    text = json.dumps(named | header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"LoRA file {quote(str(path))} cannot be written: {error.strerror or error}"
        ) from error


def _read_header(file: Path, label: str) -> PartWeights:
    if file.is_dir():
        raise UserError(
            f"{label} is a folder without {layouts.WEIGHTS_NAME}; give the .safetensors file in it"
        )
    if not is_file(file):
        raise UserError(f"there is no {label}; give the path of a .safetensors file")
    if file.stat().st_size == 0:
        raise UserError(f"{label} is empty; copy or download it again")
    if is_pickle(file.name):
        raise UserError(f"{label} is a pickle, which can run code and is not loaded; get it as .safetensors")
    try:
        return read_header(file, str(file))
    except UserError as error:
        raise UserError(f"LoRA: {error}") from error


def _group(tensors: Mapping[str, Tensor], label: str, layout: Layout) -> dict[str, dict[Role, Tensor]]:
    """Tensors by layer, sorted. Raises UserError for a file of something else."""
    is_flat = any(key.startswith(("lora_unet_", "lora_te")) for key in tensors)
    if any(".lora_A." in key for key in tensors) and (
        is_flat or any(".lora_down." in key for key in tensors)
    ):
        raise UserError(
            f"{label} mixes peft's names (lora_A) with kohya's (lora_unet_, lora_down); it was renamed by halves"
        )
    grouped: dict[str, dict[Role, Tensor]] = {}
    strangers: list[str] = []
    for key in sorted(tensors):
        found = split_key(key)
        method = relative_of_lora(key)
        if method is not None:
            raise UserError(f"{label} holds {quote(key)}, which is {method}; only plain LoRA can be used")
        if found is None:
            strangers.append(key)
        else:
            grouped.setdefault(found[0], {})[found[1]] = tensors[key]
    if not grouped:
        first = f", first {quote(strangers[0])}" if strangers else ""
        raise UserError(
            f"{label} holds no LoRA: {len(strangers)} tensors{first}; is it a whole model's file?"
        )
    if strangers:
        raise UserError(
            f"{label} holds {len(strangers)} tensors that are no part of a LoRA, first "
            f"{quote(strangers[0])}; it was not made for this or is damaged"
        )
    return grouped


def _layer(name: str, roles: Mapping[Role, Tensor], label: str) -> Layer:
    where = f"{label}: layer {quote(name)}"
    for role in ("down", "up"):
        if role not in roles:
            raise UserError(
                f"{where} has no lora_{role}.weight; the file is damaged, copy or download it again"
            )
    for role, tensor in roles.items():
        if tensor.dtype not in _FLOATS:
            raise UserError(f"{where}: {role} must be of 16-bit floats or wider, got {str(tensor.dtype)[6:]}")
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{where}: {role} holds NaN or infinity; training went wrong, use an earlier save"
            )
    down, up, alpha = roles["down"], roles["up"], roles.get("alpha")
    for role, tensor in (("down", down), ("up", up)):
        if tensor.ndim < 2 or any(size != 1 for size in tensor.shape[2:]):
            raise UserError(
                f"{where}: {role} must be a matrix (or end in dimensions of 1), got shape "
                f"{list(tensor.shape)}; only Linear and 1x1 convolutions can be adapted"
            )
    if down.shape[0] == 0 or up.shape[1] == 0:
        raise UserError(f"{where} has rank 0, so it would do nothing; train with a rank of 1 or more")
    if down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        raise UserError(
            f"{where}: down {list(down.shape)} must be (rank, inputs) and up {list(up.shape)} "
            "(outputs, rank) of one rank; the file is damaged"
        )
    if alpha is not None:
        if alpha.numel() != 1:
            raise UserError(
                f"{where}: alpha must be one number, got shape {list(alpha.shape)}; the file is damaged"
            )
        if float(alpha) <= 0:
            raise UserError(f"{where}: alpha must be above 0, got {float(alpha):g}; the file is damaged")
        alpha = alpha.reshape(())
    layer = Layer(name, *split_name(name), down, up, alpha)
    _check_bound(layer, where)
    return layer


def _check_bound(layer: Layer, where: str) -> None:
    if _bound(layer) > _LARGEST_CHANGE:
        raise UserError(f"{where} would change weights by up to {_bound(layer):.3g}; the file is damaged")


def _bound(layer: Layer) -> float:
    """No number of the layer's delta is larger."""
    return layer.scale * layer.rank * float(layer.down.abs().max()) * float(layer.up.abs().max())


def count_parts(layers: Iterable[Layer]) -> dict[Part, int]:
    """Layers per network, of those that have any."""
    parts = [layer.part for layer in layers]
    return {part: parts.count(part) for part in PARTS if part in parts}
