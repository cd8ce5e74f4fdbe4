"""Tensors by 128-bit keys in a folder of safetensors shards, read through memory maps.

A shard is complete or absent (files.atomic). It holds, for each shape of entries, the entries back to back,
their ends, and their keys, so it describes itself:

    8x3x8x8        (sum of n, 8, 3, 8, 8)      entries (n, 8, 3, 8, 8)
    8x3x8x8/ends   int64 (N,)
    8x3x8x8/keys   int64 (N, 2)

index.safetensors lists all keys, sorted, with their places; it is rebuilt from the shards whenever it does not name
exactly the shards that are there. So a process may be killed anywhere: what was flushed stays.

lmdb wrote 20 to 60% faster in a prototype and read equally fast, but a file that was cut short ends the process that
reads it (SIGBUS); a tensor for each key in plain safetensors shards is read at a fifth of the speed.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections import OrderedDict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.files.atomic import atomic_file, remove_partials
from ea_runtime.files.safe import quote_path

INDEX = "index.safetensors"
#: A shard is written when it reaches this many bytes or seconds.
SHARD_BYTES = 256 << 20
SHARD_SECONDS = 60.0
#: Shards kept open by a process.
OPEN_SHARDS = 256
#: A key: two 64-bit numbers.
KEY = np.dtype([("high", "<u8"), ("low", "<u8")])


class Store:
    """The present entries of a folder. Picklable: a copy opens its own files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self.shards, self.groups, self._columns = _load_index(folder)

    def __len__(self) -> int:
        return len(self._columns["high"])

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Positions int64 (N,) of the keys (N,) of type KEY; -1 for none."""
        high, low = self._columns["high"], self._columns["low"]
        found = np.full(len(keys), -1, dtype=np.int64)
        if not len(high):
            return found
        at = np.searchsorted(high, keys["high"])
        # among equal high halves, a handful at most, the low ones are sorted too
        for _ in range(64):
            inside = np.minimum(at, len(high) - 1)
            same = (at < len(high)) & (high[inside] == keys["high"])
            hit = same & (low[inside] == keys["low"]) & (found < 0)
            found[hit] = inside[hit]
            if not (same & (found < 0)).any():
                return found
            at = at + 1
        raise AssertionError("keys are hashes: so many do not share a half")

    def get(self, position: int) -> Tensor:
        """The entry (n, *shape), a view of the file."""
        names = ("shard", "group", "begin", "count")
        shard, group, begin, count = (int(self._columns[name][position]) for name in names)
        return self._shard(shard)[self.groups[group]][begin : begin + count]

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= OPEN_SHARDS:
            self._open.popitem(last=False)
        self._open[number] = load_file(self.folder / self.shards[number])  # views of the file
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])


class Writer:
    """Adds entries to a folder. `flush` makes what was added durable; leaving the context does."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES, seconds: float = SHARD_SECONDS) -> None:
        self.folder = folder
        self.shard_bytes, self.seconds = shard_bytes, seconds
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_partials(folder)
        except OSError as error:
            raise UserError(f"the cache {quote_path(folder)} cannot be written: {error.strerror}") from error
        self._restart()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.flush()  # also after an error: the entries are right

    def add(self, key: Any, entry: Tensor) -> None:
        """An entry (n, *shape) on the CPU under a key (a scalar of type KEY, or a pair of numbers)."""
        name = "x".join(str(size) for size in entry.shape[1:])
        self._entries.setdefault(name, []).append((int(key[0]), int(key[1]), entry))
        self._bytes += entry.numel() * entry.element_size()
        if self._bytes >= self.shard_bytes or time.monotonic() - self._since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Writes what was added as a shard. Raises UserError if the disk is full."""
        tensors: dict[str, Tensor] = {}
        for name, entries in self._entries.items():
            tensors[name] = torch.cat([entry for _, _, entry in entries]).contiguous()
            ends = np.cumsum([len(entry) for _, _, entry in entries])
            keys = np.array([(high, low) for high, low, _ in entries], dtype=np.uint64)
            tensors[f"{name}/ends"] = torch.from_numpy(ends.astype(np.int64))
            tensors[f"{name}/keys"] = torch.from_numpy(keys.view(np.int64))
        self._restart()
        if tensors:
            write_file(
                self.folder / f"shard-{time.time_ns():020d}-{secrets.token_hex(2)}.safetensors", tensors
            )

    def _restart(self) -> None:
        self._entries: dict[str, list[tuple[int, int, Tensor]]] = {}
        self._bytes = 0
        self._since = time.monotonic()


def write_file(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all even after a power cut. Raises UserError for a full disk."""
    try:
        with atomic_file(path, durable=True) as partial:
            save_file(tensors, partial, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the cache {quote_path(path.parent)} cannot be written: {error}; make room or name another "
            "`data.cache_folder`"
        ) from error


def remake_index(folder: Path) -> None:
    """Writes index.safetensors for the shards that are there."""
    shards, groups, columns = _read_shards(folder)
    metadata = {"shards": json.dumps(shards), "groups": json.dumps(groups)}
    tensors = {
        name: torch.from_numpy(column.view(np.int64) if column.dtype == np.uint64 else column)
        for name, column in columns.items()
    }
    write_file(folder / INDEX, tensors, metadata)


def _present(folder: Path) -> dict[str, int]:
    """The shards of a folder and their bytes, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            shards = [
                entry for entry in entries if fnmatch(entry.name, "shard-*.safetensors") and entry.is_file()
            ]
            return dict(sorted((entry.name, entry.stat().st_size) for entry in shards))
    except FileNotFoundError:
        return {}


def _load_index(folder: Path) -> tuple[list[str], list[str], dict[str, np.ndarray]]:
    """(shards, groups, columns) from the index if it fits the shards, else from these."""
    path = folder / INDEX
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            shards, groups = json.loads(metadata["shards"]), json.loads(metadata["groups"])
            if shards == _present(folder):
                columns = {name: tensor.numpy() for name, tensor in load_file(path).items()}
                columns |= {name: columns[name].view(np.uint64) for name in ("high", "low")}
                return list(shards), groups, columns
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        pass  # there is none yet, or it is damaged
    shards, groups, columns = _read_shards(folder)
    return list(shards), groups, columns


def _read_shards(folder: Path) -> tuple[dict[str, int], list[str], dict[str, np.ndarray]]:
    """The contents of the shards. A damaged one counts as empty: its entries are made again."""
    shards = _present(folder)
    groups: list[str] = []
    parts: dict[str, list[np.ndarray]] = {
        name: [] for name in ("high", "low", "shard", "group", "begin", "count")
    }
    for number, name in enumerate(shards):
        try:
            tensors = load_file(folder / name)
        except (OSError, SafetensorError):
            continue
        for group in (key for key in tensors if "/" not in key):
            if group not in groups:
                groups.append(group)
            keys = np.ascontiguousarray(tensors[f"{group}/keys"].numpy()).view(np.uint64)
            ends = tensors[f"{group}/ends"].numpy()
            begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
            parts["high"].append(keys[:, 0])
            parts["low"].append(keys[:, 1])
            parts["shard"].append(np.full(len(ends), number, dtype=np.int32))
            parts["group"].append(np.full(len(ends), groups.index(group), dtype=np.int32))
            parts["begin"].append(begins)
            parts["count"].append((ends - begins).astype(np.int64))
    types = {"high": np.uint64, "low": np.uint64, "shard": np.int32, "group": np.int32}
    columns = {
        name: np.concatenate(found) if found else np.empty(0, types.get(name, np.int64))
        for name, found in parts.items()
    }
    order = np.lexsort((columns["low"], columns["high"]))
    return shards, groups, {name: np.ascontiguousarray(column[order]) for name, column in columns.items()}
