"""The filter `duplicate`: of clips that look alike, the largest stays.

A filter over the whole set: it runs after all others, over the clips that are still kept, in an order that depends on
the clips alone, so the same set gives the same answer with any number of workers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from pydantic import Field

from ea_data.options import Options
from ea_data.protocols import Decision
from ea_runtime.errors import UserError

_BITS = 64  # of a frame's hash
_BANDS = 4


class DuplicateOptions(Options):
    """distance: bits of 64 a frame, on average over the frames, in which a copy may differ from its original."""

    score: str = "duplicates"
    distance: float = Field(4.0, ge=0, le=11)


class DuplicateFilter:
    """Drops a clip whose hash is near that of a clip kept before it.

    Clips come by falling number of pixels, then by clip_id: what is kept is the largest of its kind. A copy of a copy
    that was dropped counts only if it is near a kept clip itself.
    """

    version = "1"

    def __init__(self, options: DuplicateOptions) -> None:
        self.options = options
        self.scores = (options.score,)
        self.threshold = f"> {options.distance:g} of {_BITS} bits from every other"

    def missing(self) -> list[str]:
        return []

    def order(self, record: dict[str, Any]) -> tuple[int, str]:
        """Larger frames first, then by clip_id."""
        return -int(record["width"]) * int(record["height"]), str(record["clip_id"])

    def judge(self, records: Iterable[dict[str, Any]]) -> Iterator[Decision]:
        """One decision a record, in their order. Raises UserError where a record has no hash."""
        indexes: dict[int, HashIndex] = {}
        for record in records:
            words = self._words(record)
            index = indexes.setdefault(len(words), HashIndex(len(words)))
            found = index.nearest(words, int(self.options.distance * len(words)))
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
    """Hashes of some 64-bit words each, found again by distance without looking at them all.

    Exact: if two hashes differ in at most 11 bits a word on average, then some word differs in at most 11, so one of
    its four bands of 16 bits differs in at most 2 (pigeonhole). Only clips that share such a band are compared.
    Memory: about 100 bytes a word kept.
    """

    def __init__(self, num_words: int) -> None:
        self._hashes = np.zeros((1024, num_words), np.uint64)
        self._names: list[str] = []
        self._buckets: dict[tuple[int, int, int], list[int]] = defaultdict(list)

    def add(self, words: np.ndarray, name: str) -> None:
        """words: (num_words,) uint64."""
        number = len(self._names)
        if number == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        self._hashes[number] = words
        self._names.append(name)
        for place, value in _bands(words):
            self._buckets[*place, value].append(number)

    def nearest(self, words: np.ndarray, most: int) -> tuple[str, int] | None:
        """The name and distance in bits of the nearest hash within `most` bits, the earliest of equals; or None."""
        reach = most // len(words) // _BANDS  # bits that the best band of the best word differs in, at most
        flips = _FLIPS[: 1 if reach == 0 else 17 if reach == 1 else len(_FLIPS)]
        candidates: set[int] = set()
        for place, value in _bands(words):
            for flip in flips:
                candidates.update(self._buckets.get((*place, value ^ flip), ()))
        if not candidates:
            return None
        numbers = np.array(sorted(candidates))
        distances = np.bitwise_count(self._hashes[numbers] ^ words).sum(1)
        best = int(distances.argmin())
        if distances[best] > most:
            return None
        return self._names[numbers[best]], int(distances[best])


def _bands(words: np.ndarray) -> Iterator[tuple[tuple[int, int], int]]:
    """((word, band), the band's 16 bits) of each."""
    for word, value in enumerate(words.tolist()):
        for band in range(_BANDS):
            yield (word, band), value >> (16 * band) & 0xFFFF


#: what 16 bits are xored with to flip none, one or two of them: 1 + 16 + 120
_FLIPS = [
    0,
    *(1 << a for a in range(16)),
    *(1 << a | 1 << b for a in range(16) for b in range(a)),
]


def build(options: DuplicateOptions) -> DuplicateFilter:
    return DuplicateFilter(options)
