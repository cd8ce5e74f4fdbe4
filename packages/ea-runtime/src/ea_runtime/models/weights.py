"""Safetensors of a part (one file or shards): found, checked and read without trusting a byte of them.

Files are read into fresh memory, not mapped: a cast then never counts the file twice, the peak is one copy of the
weights, and a file that shrinks while it is in use is an error, not a bus error.
Nothing here unpickles.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError
from ea_runtime.files.safe import MAX_INDEX_BYTES, inside, is_file, plain, quote, quote_path, read_json
from ea_runtime.models.layout import IMAGE_ENCODER

if TYPE_CHECKING:
    import torch

#: safetensors dtype -> (name in torch, bytes an element)
DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
#: suffixes of files that can run code when torch.load reads them
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
STEMS = ("diffusion_pytorch_model", "model")
MAX_HEADER_BYTES = 64 << 20
MAX_SHARDS = 1000
MAX_DIMENSIONS = 16


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: where its bytes are (absolute offsets) and what they mean."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class PartWeights:
    """All tensors of a part by name, and their files."""

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.tensors.items()}

    @property
    def num_bytes(self) -> int:
        return sum(entry.end - entry.begin for entry in self.tensors.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """Elements per dtype, the most frequent first."""
        counts: Counter[str] = Counter()
        for entry in self.tensors.values():
            counts[entry.dtype] += entry.count
        return dict(counts.most_common())


def is_pickle(name: str) -> bool:
    """True if torch.load would unpickle a file of this name."""
    return name.lower().endswith(PICKLE_SUFFIXES)


def find_weights(folder: Path, part: str) -> PartWeights:
    """The tensors of `part` (a folder beneath the model folder), headers read, no data.

    A file `diffusion_pytorch_model.safetensors` or `model.safetensors`, or shards named by its
    `.index.json`, or the only `.safetensors` of the part; of a text encoder only `model`, the name that
    transformers reads. Raises UserError if there are only pickles, nothing, or damaged files.
    """
    directory = inside(folder, part)
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    is_text = part.startswith("text")
    for stem in STEMS[is_text:]:
        if f"{stem}.safetensors" in names:
            return _single(folder, f"{part}/{stem}.safetensors")
        if f"{stem}.safetensors.index.json" in names:
            return _sharded(folder, part, f"{stem}.safetensors.index.json")
    indices = [name for name in names if name.endswith(".safetensors.index.json")]
    singles = [name for name in names if name.endswith(".safetensors")]
    if len(indices) == 1 and not is_text:
        return _sharded(folder, part, indices[0])
    if not indices and len(singles) == 1 and not is_text:
        return _single(folder, f"{part}/{singles[0]}")
    stem = STEMS[is_text or part == IMAGE_ENCODER]
    expected = f"{part}/{stem}.safetensors (or its shards with .safetensors.index.json)"
    if indices or singles:
        raise UserError(
            f"{part} of model folder {quote_path(folder)} has weights under other names; expected {expected}"
        )
    pickles = [name for name in names if is_pickle(name) or name.endswith(".bin.index.json")]
    if pickles:
        raise UserError(
            f"{part} of model folder {quote_path(folder)} holds its weights as a pickle "
            f"({quote(pickles[0])}), which can "
            f"run code and is not loaded; run `ea models convert {folder}` first"
        )
    raise UserError(f"{part} of model folder {quote_path(folder)} has no weights; expected {expected}")


def read_header(path: Path, label: str | None = None) -> PartWeights:
    """The tensors of one safetensors file, from its header alone.

    Everything the format promises is checked: length, JSON, types, dtypes, shapes, offsets that
    neither overlap nor leave a gap, and a file that ends where the last tensor ends. Raises UserError.
    """
    where = f"safetensors file {quote(label or path.name)}"
    if not is_file(path):
        raise UserError(f"{where} is missing or no regular file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise UserError(
                    f"{where} is damaged or cut short: its header would have {length:,} bytes, the file "
                    f"has {size:,}; "
                    "download it again"
                )
            raw = file.read(length)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
        if not isinstance(header, dict):
            raise ValueError("it is no JSON object")
        metadata = _metadata(header.pop("__metadata__", {}))
        tensors = {name: _entry(path, name, item, 8 + length) for name, item in header.items()}
        _check_cover(tensors, 8 + length, size)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged: {plain(error, 200)}; download it again") from error
    return PartWeights((path,), tensors, metadata)


def iter_tensors(
    weights: PartWeights, names: Collection[str], *, is_shared: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors called `names` as stored, in the order of the files' bytes.

    is_shared: all of them use the same memory in turn; for callers that copy each (to another dtype or
        device), so that only their copies take memory.

    Raises UserError on a short read.
    """
    import torch

    wanted = {name: entry for name, entry in weights.tensors.items() if name in names}
    size = max((entry.end - entry.begin for entry in wanted.values()), default=0)
    shared = torch.empty(size, dtype=torch.uint8) if is_shared else None
    for path in weights.files:
        entries = sorted(
            ((name, entry) for name, entry in wanted.items() if entry.file == path),
            key=lambda item: item[1].begin,
        )
        with path.open("rb", buffering=0) as file:
            for name, entry in entries:
                yield name, _read(file, name, entry, shared)


def empty_tensors(weights: PartWeights, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Shape and dtype of the tensors called `names`, on the meta device; no file is opened."""
    import torch

    for name, entry in weights.tensors.items():
        if name in names:
            yield name, torch.empty(entry.shape, dtype=getattr(torch, DTYPES[entry.dtype][0]), device="meta")


def _read(file: io.FileIO, name: str, entry: TensorEntry, shared: torch.Tensor | None) -> torch.Tensor:
    import torch

    dtype = getattr(torch, DTYPES[entry.dtype][0])
    size = entry.end - entry.begin
    raw = torch.empty(size, dtype=torch.uint8) if shared is None else shared[:size]
    view = raw.numpy().data
    file.seek(entry.begin)
    done = 0
    while done < size:
        got = file.readinto(view[done:])
        if not got:
            raise UserError(
                f"tensor {quote(name)} of {quote(entry.file.name)} ends early; download the file again"
            )
        done += got
    # a bool byte other than 0 and 1 would be undefined behaviour
    return (raw.ne(0) if dtype is torch.bool else raw.view(dtype)).reshape(entry.shape)


def _single(folder: Path, name: str) -> PartWeights:
    return read_header(inside(folder, name), name)


def read_weight_map(folder: Path, part: str, index_name: str) -> tuple[dict[str, str], str]:
    """Tensor names and their files from an index of shards, and the index's name for errors. Raises UserError."""
    where = f"{quote(f'{part}/{index_name}')} in model folder {quote_path(folder)}"
    weight_map = read_json(folder, f"{part}/{index_name}", MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{where} must have a `weight_map` from tensor names to files; download it again")
    for name in weight_map.values():
        if not isinstance(name, str) or "/" in name or "\\" in name or name in ("", ".", ".."):
            raise UserError(
                f"{where} must name weight files next to it, got {quote(name)}; do not trust this folder"
            )
    count = len(set(weight_map.values()))
    if count > MAX_SHARDS:
        raise UserError(f"{where} names {count:,} files, more than the {MAX_SHARDS:,} it may name")
    return weight_map, where


def _sharded(folder: Path, part: str, index_name: str) -> PartWeights:
    weight_map, where = read_weight_map(folder, part, index_name)
    shards = sorted(set(weight_map.values()))
    for name in shards:
        if not name.endswith(".safetensors"):
            raise UserError(
                f"{where} names {quote(name)}, which is no safetensors file; run `ea models convert "
                f"{folder}` first"
            )
    headers = {name: _single(folder, f"{part}/{name}") for name in shards}
    absent = [key for key, name in weight_map.items() if key not in headers[name].tensors]
    if absent:
        raise UserError(
            f"{where} names {len(absent)} tensors that its files do not hold, first {quote(absent[0])}; "
            "download it again"
        )
    tensors = {key: headers[name].tensors[key] for key, name in weight_map.items()}
    files = tuple(headers[name].files[0] for name in shards)
    return PartWeights(files, tensors, headers[shards[0]].metadata)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("its header names a tensor twice")
    return result


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("its `__metadata__` must map text to text")
    return value


def _entry(path: Path, name: str, item: Any, data_start: int) -> TensorEntry:
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {quote(name)} must have dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {quote(name)} has dtype {quote(dtype)}, not one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_natural(n) for n in shape):
        raise ValueError(f"tensor {quote(name)} has shape {quote(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_natural(n) for n in offsets):
        raise ValueError(f"tensor {quote(name)} has data_offsets {quote(offsets)}")
    begin, end = offsets
    wanted = math.prod(shape) * DTYPES[dtype][1]
    if end - begin != wanted:
        raise ValueError(f"tensor {quote(name)} takes {end - begin:,} bytes, its shape needs {wanted:,}")
    return TensorEntry(path, dtype, tuple(shape), data_start + begin, data_start + end)


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48  # bool is an int, and 1e400-like numbers are bombs


def _check_cover(tensors: dict[str, TensorEntry], start: int, size: int) -> None:
    position = start
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise ValueError(f"the bytes of tensor {quote(name)} overlap another's or leave a gap")
        position = entry.end
    if position != size:
        raise ValueError(f"it has {size:,} bytes, its tensors end at {position:,}")
