"""LoRA files: read in any layout with every check that needs no model (checks.py), and written in one (layouts.py)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ea_lora import layouts
from ea_lora.card import Card
from ea_lora.checks import check_bound, group_tensors, make_layer
from ea_lora.configs import DIFFUSERS_KEY, AdapterConfig, header_configs
from ea_lora.keys import CONFIG_NAME, PARTS, TEXT_FOLDER, WEIGHTS_NAME, Layout, Part
from ea_lora.layer import FLOATS, MAX_PATH, WHOLES, Layer, LoraFile, weight_files
from ea_runtime.errors import UserError
from ea_runtime.files.atomic import atomic_file
from ea_runtime.files.safe import is_file, quote, read_json
from ea_runtime.models.weights import PartWeights, is_pickle, iter_tensors, read_header

#: where sd-webui's first hash of a LoRA begins and how many bytes it covers
_LEGACY_START, _LEGACY_BYTES = 0x100000, 0x10000
#: metadata that follows from the tensors and the layout
_COMPUTED = ("sshs_model_hash", "sshs_legacy_hash", "format", DIFFUSERS_KEY, layouts.ALPHA_KEY)


def read_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Read and check a LoRA: a .safetensors file of any trainer, or a folder of peft's.

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


def as_file(lora: str | os.PathLike[str] | LoraFile) -> LoraFile:
    """A LoRA that was read already, or the one at a path."""
    return lora if isinstance(lora, LoraFile) else read_lora(lora)


def _read_one(file: Path, given: str | os.PathLike[str]) -> LoraFile:
    label = f"LoRA file {quote(str(file if Path(given).is_dir() else given), MAX_PATH)}"
    weights = _read_header(file, label)
    tensors = dict(iter_tensors(weights, weights.tensors))
    layout = layouts.layout_of(tensors)
    grouped = group_tensors(tensors, label)
    configs = _configs(file, weights.metadata, label)
    is_text = file.parent.name == TEXT_FOLDER and file.name == WEIGHTS_NAME
    # sd-scripts' own names only: converters to lora_A and lora_B keep its metadata and multiply alpha in
    card = Card.from_metadata(weights.metadata if any(".lora_down." in key for key in tensors) else {})
    layers = []
    for name, roles in grouped.layers.items():
        part, path = layouts.place_in(layout, name)
        layer = make_layer(name, "text" if is_text else part, path, roles, label)
        if card.alpha is not None and card.alpha > 0 and card.rank in (None, layer.rank):
            layer = replace(layer, said=card.alpha)
        layers.append(_with_alpha(layer, configs.get(layer.part), weights.metadata, label))
    without = sum(layer.alpha is None and layer.said is None for layer in layers)
    count = "1 layer; its rank is" if without == 1 else f"{without} layers; their rank is"
    notes = [f"no alpha for {count} used"] if without else []
    return LoraFile(file, tuple(layers), dict(weights.metadata), layout, (*grouped.notes, *notes))


def _configs(file: Path, metadata: Mapping[str, str], label: str) -> Mapping[Part, tuple[str, AdapterConfig]]:
    """peft's configs by network, each with the network's name in the file: from its header, or from next to it."""
    found = header_configs(metadata, label)
    config = file.with_name(CONFIG_NAME)
    if found or file.name != WEIGHTS_NAME or not is_file(config):
        return found
    own = AdapterConfig(read_json(file.parent, CONFIG_NAME), f"{quote(str(config), MAX_PATH)}")
    return dict.fromkeys(PARTS, ("", own))


def _with_alpha(
    layer: Layer, config: tuple[str, AdapterConfig] | None, metadata: Mapping[str, str], label: str
) -> Layer:
    """The layer with the alpha that a config gives it, unless it has its own."""
    if config is not None:
        network, own = config
        path = layer.path.removeprefix(f"{network}.") if network else layer.path
        if own.needs_whole_paths and path == layer.name:
            raise UserError(
                f"{own.label} has patterns with ^, for whole paths, and {quote(layer.name)} does not show where its "
                f"path begins; save it with peft's save_pretrained, which puts {layouts.PEFT_PREFIX} before it"
            )
        own.check_rank(path, layer.rank)
        if layer.alpha is None:
            said = own.alpha_of(path, layer.rank)
            layer = replace(layer, alpha=_alpha_tensor(said, layer, metadata), said=said)
    check_bound(layer, f"{label}: layer {quote(layer.name)}")
    return layer


def _alpha_tensor(value: float, layer: Layer, metadata: Mapping[str, str]) -> Tensor | None:
    """Alpha as a tensor of its dtype before a conversion; None if it had no tensor then."""
    record = layouts.read_alpha_record(metadata)
    kind = record.get("others", {}).get(f"{layer.part}:{layer.path}", record.get("dtype", "float32"))
    if kind == "none":
        return None
    known = {str(dtype)[6:]: dtype for dtype in (*FLOATS, *WHOLES)}
    return torch.tensor(value, dtype=known.get(kind, torch.float32))


def write_lora(
    path: str | os.PathLike[str],
    layers: Iterable[Layer],
    metadata: Mapping[str, str] | None = None,
    layout: Layout = "kohya",
) -> None:
    """Write layers, in V2's names or another layout, with the hashes that other tools check.

    path: a file, written whole or not at all; for "peft" a folder. metadata: text by key; keys of training
    begin with `ss_`, as kohya's. `sshs_*` are computed.
    Raises UserError if two layers have one name or the file cannot be written.
    """
    layers = list(layers)
    if not layers:
        raise UserError("`layers` must hold at least one layer, got none")
    own = {key: value for key, value in (metadata or {}).items() if key not in _COMPUTED}
    if layout in ("peft", "diffusers"):
        own |= {"format": "pt", layouts.ALPHA_KEY: layouts.alpha_record(layers)}
    if layout == "diffusers":
        own[DIFFUSERS_KEY] = layouts.diffusers_metadata(layers)
    if layout != "peft":
        _write(Path(path), _file_bytes(layers, own, layout))
        return
    folders = {"denoiser": Path(path), "text": Path(path) / TEXT_FOLDER}
    for part, folder in folders.items():
        members = [layer for layer in layers if layer.part == part]
        if members:
            config = {"peft_type": "LORA", "inference_mode": True, **layouts.adapter_config(members)}
            _write(folder / CONFIG_NAME, json.dumps(config, indent=2).encode() + b"\n")
            _write(folder / WEIGHTS_NAME, _file_bytes(members, own, layout))


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
        with atomic_file(path, durable=True) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise UserError(
            f"LoRA file {quote(str(path))} cannot be written: {error.strerror or error}"
        ) from error


def _read_header(file: Path, label: str) -> PartWeights:
    if file.is_dir():
        raise UserError(f"{label} is a folder without {WEIGHTS_NAME}; give the .safetensors file in it")
    if not is_file(file):
        wrong = f"{label} is no regular file" if file.exists() else f"there is no {label}"
        raise UserError(f"{wrong}; give the path of a .safetensors file")
    if file.stat().st_size == 0:
        raise UserError(f"{label} is empty; copy or download it again")
    if is_pickle(file.name):
        raise UserError(f"{label} is a pickle, which can run code and is not loaded; get it as .safetensors")
    try:
        return read_header(file, str(file))
    except UserError as error:
        raise UserError(f"LoRA: {error}") from error
