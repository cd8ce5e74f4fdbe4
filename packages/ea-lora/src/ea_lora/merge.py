"""A model folder with LoRAs merged into its weights, for tools without LoRA.

The folder is copied and only the changed tensors are rewritten, in place: all other bytes stay, and one
tensor at a time is in memory. `W + sum of weight * scale * up @ down` is computed in float32 and cast once.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ea_lora.folder import load_networks
from ea_lora.io import as_file
from ea_lora.keys import PARTS, Part
from ea_lora.layer import Layer, LoraFile
from ea_lora.matching import Matching, match_lora
from ea_runtime.errors import UserError
from ea_runtime.files.atomic import MANIFEST, atomic_folder, require_new_folder, require_space
from ea_runtime.files.hashes import content_hash
from ea_runtime.files.safe import inside, is_file, quote
from ea_runtime.generation.adapters import DEFAULT_WEIGHT, check_weight
from ea_runtime.models.layout import PARTS as FOLDERS
from ea_runtime.models.layout import resolve_folder
from ea_runtime.models.weights import DTYPES, TensorEntry, find_weights, is_pickle

#: written into the new folder, for people: the base and the LoRAs merged into it
RECORD = "merged_loras.json"
LoraSpec = str | os.PathLike[str] | LoraFile | tuple[str | os.PathLike[str] | LoraFile, float]


@dataclass(frozen=True, slots=True)
class Merged:
    """The written folder, the number of changed tensors, and the fit of each file."""

    folder: Path
    num_changed: int
    matchings: tuple[Matching, ...]


def merge_lora(
    model: Any,
    loras: LoraSpec | Sequence[LoraSpec],
    out: str | os.PathLike[str],
    *,
    parts: Collection[str] = PARTS,
    exclude: Sequence[str] = (),
) -> Merged:
    """Write a new model folder with LoRAs merged; the model and its folder stay as they are.

    Args:
        model: a model folder or name, or a pipeline that was loaded from one (its folder is merged, in the precision of
            its files).
        loras: a path, (path, weight), or a list of these; without a weight 1.
        out: a folder that does not exist yet, or is empty.
        parts, exclude: as in `load_lora`.

    Raises UserError, with nothing written: all that `load_lora` refuses, `out` exists, the disk is too small, a
        result that is not finite in the folder's dtype.
    """
    source = _source_folder(model)
    target = Path(out).resolve()
    require_new_folder(target, "out", outside=source)
    files = [(as_file(path), weight) for path, weight in _specs(loras)]
    wanted = [part for part in PARTS if part in parts and any(file.may_have(part) for file, _ in files)]
    networks = load_networks(source, wanted)
    matchings = tuple(match_lora(file, networks, parts, exclude) for file, _ in files)
    names = [name for name in _files_to_copy(source) if name not in (MANIFEST, RECORD)]
    changes = _changes(source, names, matchings, [weight for _, weight in files])
    require_space(target.parent, sum(inside(source, name).stat().st_size for name in names) + (1 << 20))
    with atomic_folder(target) as partial:
        for name in names:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(inside(source, name), partial / name)
        for change in changes:
            change.apply(partial)
        merged = [
            {"file": file.path.name, "sha256": content_hash(file.path), "weight": weight}
            for file, weight in files
        ]
        record = {"base": source.name, "loras": merged}
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return Merged(target, len(changes), matchings)


@dataclass(frozen=True, slots=True)
class _Change:
    """One tensor in a file of the folder and what is added to it. Keeps layers, not their large products."""

    file: str
    name: str
    entry: TensorEntry
    layers: tuple[tuple[Layer, float], ...]

    def apply(self, folder: Path) -> None:
        """Read the tensor from a copy of the folder and write the merged one in its place."""
        dtype = getattr(torch, DTYPES[self.entry.dtype][0])
        with (folder / self.file).open("r+b", buffering=0) as file:
            stored = torch.empty(self.entry.shape, dtype=dtype)
            file.seek(self.entry.begin)
            file.readinto(_bytes(stored))
            merged = merge_weight(stored, self.layers)
            if not bool(torch.isfinite(merged).all()):
                raise UserError(
                    f"{self.name} would hold NaN or infinity in {str(dtype)[6:]} after merging; "
                    "use smaller weights"
                )
            file.seek(self.entry.begin)
            file.write(_bytes(merged))


def merge_weight(weight: Tensor, layers: Sequence[tuple[Layer, float]]) -> Tensor:
    """A module's weight with LoRA layers at their strengths: summed in float32 or wider, cast once."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    for layer, strength in layers:
        wide = wide + (strength * layer.delta()).to(wide).reshape(wide.shape)
    return wide.to(weight.dtype)


def _changes(
    source: Path, names: Sequence[str], matchings: Sequence[Matching], weights: Sequence[float]
) -> list[_Change]:
    # files of a downloaded folder may be links to a store: entries know the real file, the copy has the name
    files = {(name.split("/")[0], inside(source, name)): name for name in names}
    by_tensor: dict[tuple[Part, str], list[tuple[Layer, float]]] = {}
    for matching, strength in zip(matchings, weights, strict=True):
        for match in matching.matches:
            key = (match.layer.part, f"{match.path}.weight")
            by_tensor.setdefault(key, []).append((match.layer, strength))
    found = {part: find_weights(source, FOLDERS[part].folder) for part in {part for part, _ in by_tensor}}
    changes = []
    for (part, name), layers in by_tensor.items():
        entry = found[part].tensors.get(name)
        if entry is None or DTYPES[entry.dtype][0] not in ("float64", "float32", "float16", "bfloat16"):
            what = "has no" if entry is None else f"holds as {entry.dtype}"
            raise UserError(
                f"{FOLDERS[part].folder} of model folder {quote(str(source))} {what} {quote(name)}; "
                "merging needs the weights in 16-bit floats or wider, under the names of their modules"
            )
        changes.append(_Change(files[FOLDERS[part].folder, entry.file], name, entry, tuple(layers)))
    return changes


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _specs(loras: Any) -> list[tuple[str | os.PathLike[str] | LoraFile, float]]:
    is_pair = isinstance(loras, tuple) and len(loras) == 2 and isinstance(loras[1], (int, float))
    items: list[Any] = [loras]
    if not is_pair and not isinstance(loras, (str, os.PathLike, LoraFile)):
        items = list(loras)
    if not items:
        raise UserError("`loras` must name at least one LoRA file, got none")
    pairs = [item if isinstance(item, tuple) else (item, DEFAULT_WEIGHT) for item in items]
    return [(path, check_weight(weight)) for path, weight in pairs]


def _source_folder(model: Any) -> Path:
    if isinstance(model, (str, os.PathLike)):
        return resolve_folder(model)
    forms = getattr(model, "quantize", None)
    if forms is not None:
        raise UserError(
            f"`model` was loaded with quantize={forms.text!r}, and weights in fewer bits take no LoRA; give the "
            "model's folder, or load it without quantize"
        )
    name = getattr(model, "model", None)
    if not isinstance(name, (str, os.PathLike)):
        raise UserError(
            f"`model` must be a model folder or a pipeline that was loaded from one, got "
            f"{quote(type(model).__name__)}; give the folder"
        )
    return resolve_folder(name)


def _files_to_copy(source: Path) -> list[str]:
    """Regular files, without pickles and hidden ones (a clone's history)."""
    paths = [path.relative_to(source) for path in sorted(source.rglob("*")) if not path.is_dir()]
    shown = [path for path in paths if not any(piece.startswith(".") for piece in path.parts)]
    names = [path.as_posix() for path in shown if not is_pickle(path.name)]
    return [name for name in names if is_file(inside(source, name))]
