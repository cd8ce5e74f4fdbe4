"""Fills a cache with missing latents and text features.

It resumes where an earlier run was killed: what is in a shard is not made again. Memory holds one shard and one batch,
however large the set is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ea_runtime.errors import UserError
from ea_runtime.files.atomic import write_atomic
from ea_runtime.files.safe import quote
from ea_runtime.training.data.dataset import BadSample, Bucket, TrainingSet
from ea_runtime.training.latents.coder import CAPTIONS, PIXELS, Coder
from ea_runtime.training.latents.keys import Contents, hex_key, text_keys
from ea_runtime.training.latents.store import Store, Writer, remake_index

BAD = "bad.json"
#: Seconds between two lines of progress.
_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of one shape: sample, first frame and key of each, (N,) arrays in order of sample and frame."""

    bucket: Bucket
    samples: np.ndarray
    starts: np.ndarray
    keys: np.ndarray

    def take(self, which: np.ndarray) -> Windows:
        return Windows(self.bucket, self.samples[which], self.starts[which], self.keys[which])

    def __len__(self) -> int:
        return len(self.samples)


def needed_windows(
    data: TrainingSet,
    contents: Contents,
    views: Sequence[Sequence[Bucket]],
    chunk: int,
    stride: int,
    with_single_frames: bool,
) -> list[Windows]:
    """Every window that a batch may be made of: chunks, and single frames.

    views: the buckets of all samples, for each view of the set.
    """
    found: dict[Bucket, tuple[list[int], list[int]]] = {}
    seen: set[tuple[Any, Bucket]] = set()
    for buckets in views:
        for index, bucket in enumerate(buckets):
            same = (contents.hashes[index].tobytes(), bucket)
            if index in contents.bad or same in seen:
                continue
            seen.add(same)
            lengths = {1} if bucket.num_frames == 1 else {chunk, 1} if with_single_frames else {chunk}
            for length in lengths:
                window = bucket._replace(num_frames=length)
                samples, starts = found.setdefault(window, ([], []))
                for start in data.starts(index, window):
                    samples.append(index)
                    starts.append(start)
    return [_windows(contents, bucket, *lists, stride) for bucket, lists in found.items()]


def _windows(
    contents: Contents, bucket: Bucket, samples: list[int], starts: list[int], stride: int
) -> Windows:
    at = np.array(starts, dtype=np.int64)
    keys = contents.keys(samples, at, bucket.num_frames, bucket.height, bucket.width, stride)
    _, first = np.unique(keys, return_index=True)  # two names of one file
    return Windows(bucket, np.array(samples, dtype=np.int64), at, keys).take(np.sort(first))


def missing_windows(windows: Sequence[Windows], store: Store, bad: dict[str, Any]) -> list[Windows]:
    """The windows that are neither in the store nor known to be bad."""
    found = []
    for group in windows:
        lacking = np.flatnonzero(store.find(group.keys) < 0)
        if bad:
            lacking = np.array([i for i in lacking if hex_key(group.keys[i]) not in bad], dtype=np.int64)
        if len(lacking):
            found.append(group.take(lacking))
    return found


def make_latents(
    data: TrainingSet,
    missing: Sequence[Windows],
    folder: Path,
    coder: Coder,
    stride: int,
    say: Callable[[str], None],
) -> dict[str, tuple[str, str]]:
    """Encodes the windows into the folder. Returns those that do not decode: key -> (path, reason)."""
    bad: dict[str, tuple[str, str]] = {}
    total = sum(len(group) for group in missing)
    progress = _Progress("latents", total, say)
    try:
        with Writer(folder) as writer:
            for group in missing:
                for rows, frames in _batches(data, group, stride, bad):
                    moments = coder.moments(torch.from_numpy(frames)).cpu()
                    if not torch.isfinite(moments).all():
                        path = data.item(int(group.samples[rows[0]])).path
                        raise UserError(
                            f"the VAE makes NaN or infinity of {quote(path.name)}; try `data.coding` fp32"
                        )
                    for row, entry in zip(rows, moments, strict=True):
                        writer.add(group.keys[row], entry[None])
                    progress.add(len(rows))
    finally:
        if bad:
            write_bad(folder, read_bad(folder) | bad)
    remake_index(folder)
    return bad


def make_features(captions: Sequence[str], folder: Path, coder: Coder, say: Callable[[str], None]) -> None:
    """Encodes the captions into the folder."""
    progress = _Progress("captions", len(captions), say)
    with Writer(folder) as writer:
        for start in range(0, len(captions), CAPTIONS):
            part = captions[start : start + CAPTIONS]
            for key, entry in zip(text_keys(part), coder.features(part), strict=True):
                writer.add(key, entry.cpu())
            progress.add(len(part))
    remake_index(folder)


def read_bad(folder: Path) -> dict[str, tuple[str, str]]:
    """The windows that did not decode: key -> (path, reason)."""
    try:
        table = json.loads((folder / BAD).read_text(encoding="utf-8"))
        return {str(key): (str(path), str(reason)) for key, (path, reason) in table.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_bad(folder: Path, bad: dict[str, tuple[str, str]]) -> None:
    write_atomic(folder / BAD, json.dumps(bad, indent=1))


def _batches(
    data: TrainingSet, group: Windows, stride: int, bad: dict[str, tuple[str, str]]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(rows of the group, their frames (B, T, H, W, 3)): windows of one file are read together."""
    bucket = group.bucket
    size = max(1, PIXELS // (bucket.num_frames * bucket.height * bucket.width))
    rows: list[int] = []
    frames: list[np.ndarray] = []
    for run in _runs(group, stride, size):
        for row, window in _read_run(data, group, run, stride, bad):
            rows.append(row)
            frames.append(window)
            if len(rows) == size:
                yield rows, np.stack(frames)
                rows, frames = [], []
    if rows:
        yield rows, np.stack(frames)


def _runs(group: Windows, stride: int, most: int) -> Iterator[list[int]]:
    """Rows of one file, near enough to be read together: at most twice the frames that are wanted."""
    run: list[int] = []
    reach = max(2 * group.bucket.num_frames, 32) * stride
    for row in range(len(group)):
        is_next = (
            run
            and len(run) < most
            and group.samples[row] == group.samples[run[-1]]
            and 0 < group.starts[row] - group.starts[run[-1]] <= reach
            and (group.starts[row] - group.starts[run[0]]) % stride == 0
        )
        if run and not is_next:
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _read_run(
    data: TrainingSet, group: Windows, run: list[int], stride: int, bad: dict[str, tuple[str, str]]
) -> Iterator[tuple[int, np.ndarray]]:
    """The windows of a run; if they do not decode together, one by one, so that only the bad ones are lost."""
    length = group.bucket.num_frames
    index, first = int(group.samples[run[0]]), int(group.starts[run[0]])
    offsets = [(int(group.starts[row]) - first) // stride for row in run]
    try:
        frames = data.read(index, first, group.bucket._replace(num_frames=offsets[-1] + length))
    except BadSample as error:
        if len(run) == 1:
            bad[hex_key(group.keys[run[0]])] = (error.path, error.reason)
        else:
            for row in run:
                yield from _read_run(data, group, [row], stride, bad)
        return
    for row, offset in zip(run, offsets, strict=True):
        yield row, frames[offset : offset + length]


class _Progress:
    """Reports every few seconds: the count of the total, the rate, the time left."""

    def __init__(self, what: str, total: int, say: Callable[[str], None]) -> None:
        self.what, self.total, self.say = what, total, say
        self.done = 0
        self._since = self._told = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self._told < _EVERY:
            return
        self._told = now
        rate = self.done / (now - self._since)
        left = (self.total - self.done) / rate
        self.say(
            f"encoding {self.what}: {self.done:,} of {self.total:,}, {rate:.0f}/s, {left / 60:.0f} min left"
        )
