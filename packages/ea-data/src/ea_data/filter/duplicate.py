"""The filter `duplicate`: of clips that look alike, the largest stays.

A filter over the whole set. It runs after all others, over the clips that are still kept, in an order that depends on
the clips alone, so the same set gives the same answer with any number of workers.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
from pydantic import Field

from ea_data.options import Options
from ea_data.protocols import Decision
from ea_runtime.errors import UserError

_BITS = 64  # of a frame's hash


class DuplicateOptions(Options):
    """distance: bits of a frame's 64, on average over the frames, in which a duplicate may differ."""

    score: str = "duplicates"
    distance: float = Field(4.0, ge=0, le=11)


class DuplicateFilter:
    """Drops a clip whose hash is near that of a clip kept before it.

    Clips come by falling number of pixels, then by clip_id, so the largest of its kind is kept. A duplicate of a
    dropped clip counts only if it is near a kept clip itself.
    """

    version = "1"

    def __init__(self, options: DuplicateOptions) -> None:
        self.options = options
        self.scores = (options.score,)
        self.threshold = f"> {options.distance:g} of {_BITS} bits from every other"

    def order(self, record: dict[str, Any]) -> tuple[int, str]:
        """Larger frames first, then by clip_id."""
        return -int(record["width"]) * int(record["height"]), str(record["clip_id"])

    def judge(self, records: Iterable[dict[str, Any]]) -> Iterator[Decision]:
        """One decision for each record, in order. Raises UserError if a record has no hash."""
        indexes: dict[int, HashIndex] = {}
        for record in records:
            words = self._words(record)
            if len(words) not in indexes:
                indexes[len(words)] = HashIndex(len(words), int(self.options.distance * len(words)))
            index = indexes[len(words)]
            found = index.nearest(words)
            if found is None:
                index.add(words, str(record["clip_id"]))
                yield Decision(True, "no other clip looks like it", self.threshold)
            else:
                clip, distance = found
                bits = distance / len(words)
                yield Decision(False, f"looks like {clip}: {bits:.3g} of {_BITS} bits differ", self.threshold)

    def _words(self, record: dict[str, Any]) -> np.ndarray:
        score = (record.get("scores") or {}).get(self.options.score)
        text = ((score or {}).get("detail") or {}).get("hash")
        if not isinstance(text, str) or not text or len(text) % 16:
            raise UserError(
                f"clip {record.get('clip_id', '?')} has no hash in the score {self.options.score!r}; "
                f"add [[score]] name = {self.options.score!r} to the profile"
            )
        return np.frombuffer(bytes.fromhex(text), np.uint64)


class HashIndex:
    """Hashes of several 64-bit words each, found by distance without a look at all of them.

    most: bits in which two near hashes may differ. Exact: the bits are dealt out to bands like cards, and of hashes
    that differ in `most` bits some band differs in at most `most // bands` of them (pigeonhole); only clips that share
    such a band are compared. Memory: 4 bytes for each value of each band, and about 140 bytes for a hash of four
    words (its words, its place in the chain of each of 16 bands, its name).
    """

    def __init__(self, num_words: int, most: int) -> None:
        self.most = most
        bits = 64 * num_words
        self._num_bands = min(range(1, bits + 1), key=lambda bands: _work(bits, most, bands))
        width = -(-bits // self._num_bands)
        self._padding = width * self._num_bands - bits
        self._powers = 1 << np.arange(width, dtype=np.int64)
        self._flips = np.array(_flips(width, most // self._num_bands), np.int64)
        self._rows = np.arange(self._num_bands)
        #: the last hash with each value of each band, and for each hash the one before it; -1 ends the chain
        self._last = np.full((self._num_bands, 1 << width), -1, np.int32)
        self._before = np.zeros((1024, self._num_bands), np.int32)
        self._hashes = np.zeros((1024, num_words), np.uint64)
        self._names = bytearray()
        self._ends = array("Q")

    def add(self, words: np.ndarray, name: str) -> None:
        """words: (num_words,) uint64."""
        number = len(self._ends)
        if number == len(self._hashes):
            self._hashes, self._before = _twice(self._hashes), _twice(self._before)
        self._hashes[number] = words
        self._names += name.encode()
        self._ends.append(len(self._names))
        values = self._bands(words)
        self._before[number] = self._last[self._rows, values]
        self._last[self._rows, values] = number

    def nearest(self, words: np.ndarray) -> tuple[str, int] | None:
        """The name and distance in bits of the nearest hash within `most` bits, the earliest of equals; or None."""
        bands = np.repeat(self._rows, len(self._flips))
        at = self._last[bands, (self._bands(words)[:, None] ^ self._flips).ravel()]
        found = []
        while (held := at >= 0).any():  # one step along all chains
            at, bands = at[held], bands[held]
            found.append(at)
            at = self._before[at, bands]
        if not found:
            return None
        numbers = np.concatenate(found)
        distances = np.bitwise_count(self._hashes[numbers] ^ words).sum(1, dtype=np.int64)
        nearest = int(distances.min())
        if nearest > self.most:
            return None
        return self._name(int(numbers[distances == nearest].min())), nearest

    def _name(self, number: int) -> str:
        start = self._ends[number - 1] if number else 0
        return self._names[start : self._ends[number]].decode()

    def _bands(self, words: np.ndarray) -> np.ndarray:
        """The number that each band's bits make. Neighbouring bits of a hash, which are often equal, go to different
        bands, so that the bands have many values."""
        bits = np.pad(np.unpackbits(words.view(np.uint8)), (0, self._padding))
        return self._powers @ bits.reshape(-1, self._num_bands)


def _twice(rows: np.ndarray) -> np.ndarray:
    """The rows with room for as many more, which takes no memory until it is used."""
    grown = np.zeros((2 * len(rows), *rows.shape[1:]), rows.dtype)
    grown[: len(rows)] = rows
    return grown


def _work(bits: int, most: int, bands: int) -> float:
    """Rough cost of finding a hash among a million: chains to look into, and hashes in them. Infinite for wide bands,
    as each of their values takes memory."""
    width = -(-bits // bands)
    if width > 16:
        return math.inf
    looked = bands * sum(math.comb(width, flipped) for flipped in range(most // bands + 1))
    return looked * (1 + 1e6 / 2**width)


def _flips(width: int, most: int) -> list[int]:
    """The masks that flip up to `most` of `width` bits, in every way."""
    return [
        sum(1 << bit for bit in chosen)
        for count in range(most + 1)
        for chosen in combinations(range(width), count)
    ]
