"""The filter `duplicate`: of clips that show the same film, the best stays.

A filter over the whole set. It runs after all others, over the clips that are still kept, in an order that depends on
the clips alone, so the same set gives the same answer with any number of workers.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from ea_data.filter.alignment import Likeness, compare
from ea_data.filter.frame_index import FrameIndex
from ea_data.media.signature import COLOURS, GREY, GRID, Signature
from ea_data.options import Options
from ea_data.protocols import Decision
from ea_runtime.errors import UserError

#: Newer codecs first; of those that are not listed, all come last.
_CODECS = ("av1", "hevc", "vp9", "h264", "vp8", "mpeg4", "mpeg2video", "mjpeg", "mpeg1video")
#: Clips that are compared closely with one clip, the likeliest first.
_MOST = 48
#: Levels: below, nothing changes but noise; and in a still clip with less to see, there is nothing to compare.
_STILL, _LEAST_SPREAD = 0.5, 2.0
#: Colours agree from this cosine on, or with less than so many levels between them.
_HUE, _TINT = 0.9, 4.0


class DuplicateOptions(Options):
    """likeness: correlation from which on clips are duplicates: of what changes in them; for those in which nothing
    does, of their frames. share: of the shorter clip, that both must have in common."""

    score: str = "duplicates"
    likeness: float = Field(default=0.95, ge=0.5, le=1)
    share: float = Field(default=0.6, ge=0.2, le=1)
    distance: Any = Field(default=None, exclude=True)

    @field_validator("distance")
    @classmethod
    def _is_new(cls, value: Any) -> Any:
        raise ValueError(
            "belongs to version 1, which compared hashes; delete it (now there are `likeness` and `share`), then "
            "`ea data score SET`"
        )


class DuplicateFilter:
    """Drops a clip that shares a run of frames with a clip kept before it.

    Clips come with colour before grey, then by falling number of pixels (without bars), bits a second, codec, and
    clip_id, so the best of its kind is kept. A duplicate of a dropped clip counts only if it is one of a kept clip
    itself. Pictures are compared with pictures, and videos with videos.
    """

    version = "2"

    def __init__(self, options: DuplicateOptions) -> None:
        self.options = options
        self.scores = (options.score,)
        self.threshold = f"likeness < {options.likeness:g} to every other"
        self._folder: Path | None = None

    def work_in(self, folder: Path) -> None:
        """Where temporary files go; by default, the system's place."""
        self._folder = folder

    def order(self, record: dict[str, Any]) -> tuple[int, int, int, int, str]:
        """The best clip first: colour, pixels, bits a second, codec, clip_id."""
        score, detail = self._score(record)
        pixels = round(int(record["width"]) * int(record["height"]) * float(detail.get("picture", 1)))
        seconds = float(record["end"]) - float(record["start"])
        bits = round(int(record.get("bits") or 0) / (seconds or 1))
        codec = str(record.get("codec"))
        age = _CODECS.index(codec) if codec in _CODECS else len(_CODECS)
        return int(float(score["value"]) < GREY), -pixels, -bits, age, str(record["clip_id"])

    def judge(self, records: Iterable[dict[str, Any]]) -> Iterator[Decision]:
        """One decision for each record, in order. Raises UserError if a record has no signature."""
        with tempfile.TemporaryFile(dir=self._folder) as file:
            kinds: dict[bool, _Kept] = {}
            for record in records:
                signature = self._read(self._score(record)[1]["signature"], record)
                is_picture = bool(record.get("is_picture"))
                kept = kinds.get(is_picture) or kinds.setdefault(is_picture, _Kept(file))
                found = self._first(signature, kept)
                if found is None:
                    kept.add(signature, record)
                    yield Decision(True, "no other clip shows the same", self.threshold)
                else:
                    other, likeness = found
                    yield Decision(False, _reason(other, likeness), self.threshold)

    def _first(self, signature: Signature, kept: _Kept) -> tuple[dict[str, Any], Likeness] | None:
        """The kept clip that shows the same, and how alike they are."""
        for number in kept.index.find(signature.luma)[:_MOST]:
            likeness = compare(kept.signature(number), signature, self.options.share)
            if likeness is not None and self._is_copy(likeness):
                return kept.record(number), likeness
        return None

    def _is_copy(self, of: Likeness) -> bool:
        if of.colour >= GREY and of.tint > _TINT and of.hue < _HUE:
            return False
        least = self.options.likeness
        if of.moved[0] >= _STILL:
            # a logo hides a part of both; what changes shows that the rest is the same
            return min(of.change, of.scene, of.gradient) >= least
        return of.moved[1] < 2 * _STILL and of.spread >= _LEAST_SPREAD and of.whole >= 1 - (1 - least) / 2

    def _score(self, record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        score = (record.get("scores") or {}).get(self.options.score) or {}
        detail = score.get("detail") or {}
        if not isinstance(detail.get("signature"), str):
            raise UserError(
                f"clip {record.get('clip_id', '?')} has no signature in the score {self.options.score!r}; "
                f"add [[score]] name = 'duplicates' to the profile, then `ea data score SET`"
            )
        return score, detail

    def _read(self, text: str, record: dict[str, Any]) -> Signature:
        try:
            return Signature.unpack(text)
        except ValueError as error:
            raise UserError(
                f"clip {record.get('clip_id', '?')}: its signature in the score {self.options.score!r} cannot be read "
                f"({error}); delete the set's ledger and run `ea data run` again"
            ) from error


class _Kept:
    """The clips that are kept: their frames in an index, their signatures in a file, ready to compare."""

    def __init__(self, file: Any) -> None:
        self.index = FrameIndex()
        self._file = file
        #: for each clip: its place in the file, bytes of its record, frames of luma and of colour
        self._places = array("Q")

    def add(self, signature: Signature, record: dict[str, Any]) -> None:
        known = {name: record.get(name) for name in ("clip_id", "source", "start", "end")}
        data = json.dumps(known).encode()
        self.index.add(signature.luma, len(self._places) // 4)
        self._places.extend((self._file.seek(0, 2), len(data), len(signature.luma), len(signature.colour)))
        self._file.write(data + signature.luma.tobytes() + signature.colour.tobytes())

    def signature(self, number: int) -> Signature:
        start, length, frames, seconds = self._places[4 * number : 4 * number + 4]
        size = frames * GRID**2
        self._file.seek(start + length)
        data = self._file.read(size + seconds * 2 * COLOURS**2)
        luma, colour = np.frombuffer(data[:size], np.uint8), np.frombuffer(data[size:], np.int8)
        return Signature(luma.reshape(-1, GRID, GRID), colour.reshape(-1, COLOURS, COLOURS, 2))

    def record(self, number: int) -> dict[str, Any]:
        """clip_id, source, start and end."""
        start, length = self._places[4 * number : 4 * number + 2]
        self._file.seek(start)
        return json.loads(self._file.read(length))


def _reason(other: dict[str, Any], likeness: Likeness) -> str:
    """The kept clip by file and span, and the part of the file that both show."""
    begin, end = float(other["start"] or 0), float(other["end"] or 0)
    span = ""
    if end > begin:
        first, last = begin + likeness.start, min(end, begin + likeness.end)
        span = f", clip {begin:.2f} to {end:.2f} s, from {first:.2f} to {last:.2f} s"
    return f"shows the same as {other['source']}{span} (clip {other['clip_id']})"
