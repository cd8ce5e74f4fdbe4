"""Frames of many clips, found again without a look at all of them.

A frame's keys are the signs of the lowest frequencies (DCT-II) of its four halves: so a logo, which changes one or two
halves, leaves the other keys as they are. Of the clips that are in the index one frame a second is kept; a clip that is
looked for brings all its frames, with the nearest signs turned over too, and one hit is enough.

Shape legend: T frames, F = GRID * GRID fields of a frame.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ea_data.media.signature import GRID, RATE

_BITS = 20  # of a key
_WEAK = 2  # signs of a key that may be turned over: those nearest to 0
_LEAST_SPREAD = 1.0  # levels: the standard deviation of a frame below which it says nothing
_ODD = np.uint64(0x9E3779B97F4A7C15)  # spreads numbers over 64 bits
_FAR = 12  # bits of 64 in which the frames of a candidate may differ
_LONGEST = 512  # frames with one key that are looked at, the last ones first: a layout that so many share says little


class FrameIndex:
    """Memory: 28 bytes for each second of a clip in which something changes, and 16 MB."""

    def __init__(self) -> None:
        tables = len(_bases())
        #: the last frame with each key, and for each frame the one before it; -1 ends the chain
        self._last = np.full((tables, 1 << _BITS), -1, np.int32)
        self._before = np.zeros((1024, tables), np.int32)
        self._hashes = np.zeros(1024, np.uint64)
        self._owners = np.zeros(1024, np.int32)
        self._count = 0
        self._rows = np.arange(tables)

    def add(self, luma: np.ndarray, owner: int) -> None:
        """luma: (T, GRID, GRID) of a clip, owner: its number."""
        frames = _informative(luma[::RATE])
        if not len(frames):
            return
        known = set()
        for keys, word in zip(_keys(frames)[0], _hashes(frames), strict=True):
            if (frame := (word, *keys)) in known:
                continue
            known.add(frame)
            self._room()
            self._before[self._count] = self._last[self._rows, keys]
            self._last[self._rows, keys] = self._count
            self._hashes[self._count] = word
            self._owners[self._count] = owner
            self._count += 1

    def find(self, luma: np.ndarray) -> list[int]:
        """The owners of frames like those of `luma`, (T, GRID, GRID): those with the most such frames first."""
        frames = _informative(luma)
        if not len(frames) or not self._count:
            return []
        keys, margins = _keys(frames)
        words = _hashes(frames)
        weak = np.argpartition(margins, _WEAK, axis=2)[..., :_WEAK]
        chosen = (np.arange(1 << _WEAK)[:, None] >> np.arange(_WEAK)) & 1
        probes = keys[..., None] ^ ((1 << weak)[..., None, :] * chosen).sum(-1)
        places = (probes | (self._rows << _BITS)[:, None]).ravel()
        asked = np.broadcast_to(words[:, None, None], probes.shape).ravel()
        # a still clip asks the same again and again
        _, first = np.unique(places.astype(np.uint64) * _ODD ^ asked, return_index=True)
        table, word = places[first] >> _BITS, asked[first]
        at = self._last[table, places[first] & ((1 << _BITS) - 1)]
        found = []
        for _ in range(_LONGEST):  # one step along all chains
            if not (held := at >= 0).any():
                break
            at, table, word = at[held], table[held], word[held]
            found.append(at[np.bitwise_count(self._hashes[at] ^ word) <= _FAR])
            at = self._before[at, table]
        owners, votes = np.unique(
            self._owners[np.unique(np.concatenate(found))] if found else [], return_counts=True
        )
        return [int(owners[place]) for place in np.lexsort((owners, -votes))]

    def _room(self) -> None:
        if self._count == len(self._hashes):
            self._before, self._hashes, self._owners = map(_twice, (self._before, self._hashes, self._owners))


def _informative(luma: np.ndarray) -> np.ndarray:
    """The frames on which there is something to see, as (T, GRID, GRID) float32."""
    frames = luma.astype(np.float32)
    return frames[frames.std((1, 2)) >= _LEAST_SPREAD]


def _keys(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys of frames, int64 (T, tables), and how far their signs are from 0, (T, tables, _BITS)."""
    found = np.einsum("tf,kfb->tkb", frames.reshape(len(frames), -1), _bases(), optimize=True)
    return (found > 0) @ (1 << np.arange(_BITS)), np.abs(found)


def _hashes(frames: np.ndarray) -> np.ndarray:
    """64 bits for each frame: of 8 x 8 fields those that are brighter than the median, uint64 (T,)."""
    pool = _pool()
    fields = (pool @ frames @ pool.T).reshape(len(frames), -1)
    bits = fields > np.median(fields, axis=1, keepdims=True) + 2
    return np.packbits(bits, axis=1).view(np.uint64).ravel()


@cache
def _pool() -> np.ndarray:
    """Means over 8 equal parts of a side of GRID fields: float32 (8, GRID)."""
    fine = np.repeat(np.eye(GRID, dtype=np.float32), 8, axis=1)  # 8 parts of each field
    return fine.reshape(GRID, 8, GRID).mean(2).T


@cache
def _bases() -> np.ndarray:
    """For each half of a frame its lowest frequencies but the mean: float32 (tables, F, _BITS)."""
    half = GRID // 2
    parts = [(slice(0, half), slice(None)), (slice(half, None), slice(None))]
    parts += [(columns, rows) for rows, columns in parts]
    found = np.zeros((len(parts), GRID, GRID, _BITS), np.float32)
    for table, (rows, columns) in enumerate(parts):
        down, across = _dct(len(range(GRID)[rows])), _dct(len(range(GRID)[columns]))
        places = [(u, v) for u in range(len(down)) for v in range(len(across))]
        places.sort(key=lambda place: (place[0] / len(down) + place[1] / len(across), place))
        for bit, (u, v) in enumerate(places[1 : _BITS + 1]):
            found[table, rows, columns, bit] = np.outer(down[u], across[v])
    return found.reshape(len(parts), GRID * GRID, _BITS)


def _dct(size: int) -> np.ndarray:
    """The cosines of DCT-II, each of length 1: (size, size)."""
    waves = np.cos(np.pi * (2 * np.arange(size) + 1) * np.arange(size)[:, None] / (2 * size))
    return waves / np.linalg.norm(waves, axis=1, keepdims=True)


def _twice(rows: np.ndarray) -> np.ndarray:
    """The rows with room for as many more, which takes no memory until it is used."""
    grown = np.zeros((2 * len(rows), *rows.shape[1:]), rows.dtype)
    grown[: len(rows)] = rows
    return grown
