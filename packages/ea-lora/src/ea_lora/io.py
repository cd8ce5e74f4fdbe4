"""LoRA files: read with every check that needs no model, and written as EasyAnimate V2 writes them.

Shape legend: R rank, I inputs and O outputs of the layer.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ea_lora.keys import KOHYA_PREFIXES, PARTS, Part, Role, flatten, relative_of_lora, split_key, split_name
from ea_runtime.errors import UserError
from ea_runtime.safe_files import is_file, quote
from ea_runtime.safe_weights import PartWeights, is_pickle, iter_tensors, read_header

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: a path is shown in errors up to this length
MAX_PATH = 300
#: no weight changes by more than float16 can hold; what training gives is below 10
_LARGEST_CHANGE = 65504.0
#: where sd-webui's first hash of a LoRA begins and how many bytes it covers
_LEGACY_START, _LEGACY_BYTES = 0x100000, 0x10000


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
    """A LoRA as it lies on disk, checked. layers: in the order of their names. metadata: text by key."""

    path: Path
    layers: tuple[Layer, ...]
    metadata: Mapping[str, str]

    def of_part(self, part: Part) -> list[Layer]:
        return [layer for layer in self.layers if layer.part == part]


def read_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Read and check a LoRA file.

    Every layer has a down and an up matrix of one rank above 0, all numbers are finite floats, alpha is above
    0, and no tensor is left over. Nothing is unpickled.

    Raises UserError, one line: no such file, empty, a pickle, damaged, no LoRA, a relative of LoRA, or any of
    the above.
    """
    file = Path(path)
    label = f"LoRA file {quote(str(path), MAX_PATH)}"
    weights = _read_header(file, label)
    tensors = dict(iter_tensors(weights, weights.tensors))
    layers = tuple(_layer(name, roles, label) for name, roles in _group(tensors, label).items())
    return LoraFile(file, layers, dict(weights.metadata))


def write_lora(
    path: str | os.PathLike[str], layers: Iterable[Layer], metadata: Mapping[str, str] | None = None
) -> None:
    """Write layers under V2's names, with the hashes that other tools look for; whole or not at all.

    metadata: text by key; keys of training begin with `ss_`, as kohya's. `sshs_*` are computed.
    Raises UserError where two layers have one name or the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        name = KOHYA_PREFIXES[layer.part] + flatten(layer.path)
        if f"{name}.lora_down.weight" in tensors:
            raise UserError(f"two layers would be written as {quote(name)}; give each module one layer")
        tensors[f"{name}.lora_down.weight"] = layer.down.contiguous()
        tensors[f"{name}.lora_up.weight"] = layer.up.contiguous()
        if layer.alpha is not None:
            tensors[f"{name}.alpha"] = layer.alpha
    if not tensors:
        raise UserError("`layers` must hold at least one layer, got none")
    own = {key: value for key, value in (metadata or {}).items() if not key.startswith("sshs_")}
    body = save(tensors)
    # kohya's rule: hashes must not change when somebody edits what is not `ss_` metadata
    hashed = _with_metadata(body, {key: value for key, value in own.items() if key.startswith("ss_")})
    _write(Path(path), _with_metadata(body, own | content_hashes(hashed)))


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
        raise UserError(f"{label} is a folder; give the .safetensors file in it")
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


def _group(tensors: Mapping[str, Tensor], label: str) -> dict[str, dict[Role, Tensor]]:
    """Tensors by layer, sorted. Raises UserError for a file of something else."""
    grouped: dict[str, dict[Role, Tensor]] = {}
    strangers: list[str] = []
    for key in sorted(tensors):
        found = split_key(key)
        method = relative_of_lora(key)
        if method is not None:
            raise UserError(
                f"{label} holds {quote(key)}, which is {method}; only plain LoRA in V2's layout can be used"
            )
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
    if _bound(layer) > _LARGEST_CHANGE:
        raise UserError(f"{where} would change weights by up to {_bound(layer):.3g}; the file is damaged")
    return layer


def _bound(layer: Layer) -> float:
    """No number of the layer's delta is larger."""
    return layer.scale * layer.rank * float(layer.down.abs().max()) * float(layer.up.abs().max())


def count_parts(layers: Iterable[Layer]) -> dict[Part, int]:
    """Layers per network, of those that have any."""
    parts = [layer.part for layer in layers]
    return {part: parts.count(part) for part in PARTS if part in parts}
