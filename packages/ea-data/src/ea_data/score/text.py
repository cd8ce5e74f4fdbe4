"""The scorer `rapidocr`: the share of a clip's frames that text covers.

RapidOCR (PP-OCR, its models are in the package) finds boxes and reads them. Text counts when it is read, since
detectors see text in bricks, windows and toys. Scripts that the recogniser does not know are not read but seen: a
line's box, found with high confidence at the same place in two frames. Without `read`, every box counts, as in
EasyAnimate V2. Boxes are somewhat larger than the ink.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from ea_data.options import Options, missing_packages
from ea_data.protocols import FrameRequest, Frames, Score
from ea_data.score.text_boxes import bounds, lines, overlap, shape_of, union_area
from ea_data.score.text_engine import Reading, TextEngine
from ea_data.score.text_looks import Place, Strokes
from ea_runtime.errors import MissingPackageError

#: Most pixels of a frame's longer side where text is read.
_MAX_SIDE = 1280
#: Most boxes of a frame that are read, the largest: a frame with more has text enough.
_MOST_READ = 8
#: Share of a text's letters that may be one and the same: rings are read as OOOOO.
_SAME = 0.8
#: A line that is seen and not read: length over height, height over the frame's shorter side, overlap of its two
#: places.
_LONG, _TALL, _STEADY = 2.0, (0.02, 0.3), 0.5
#: Share of the width that is the frame's edge: textures end there.
_EDGE = 0.01
#: Lowest confidence of its reading, if that has letters all the same: of a line that stands at one place, and of one
#: that is laid over the picture.
_GUESS, _GUESS_OVER = 0.45, 0.3


class RapidOcrOptions(Options):
    """frames: how many the detector looks at in each clip, spread evenly; 1: the middle one. side: most pixels of the
    longer side that the detector sees. score: lowest confidence of a box. largest: boxes over this share of the frame
    do not count, as the detector puts one box around all of a blurred picture.

    read: boxes count if at least `min_chars` letters and digits of their line are read with `confidence`. Then
    `samples` frames are compared for letters that come and go, and up to `most_frames` of them looked at. unread:
    lowest confidence of a box that counts without being read; 1: none does.
    """

    frames: int = Field(3, ge=1)
    side: int = Field(640, ge=64)
    score: float = Field(0.5, gt=0, lt=1)
    largest: float = Field(0.5, gt=0, le=1)
    read: bool = True
    min_chars: int = Field(3, ge=1)
    confidence: float = Field(0.8, gt=0, le=1)
    samples: int = Field(20, ge=1)
    most_frames: int = Field(8, ge=1)
    unread: float = Field(0.7, gt=0, le=1)


class _Look:
    """The boxes of one frame and their readings. is_read, is_seen: those that count, as text or as lines that are laid
    over the picture; is_line: those that may be lines of an unknown script."""

    def __init__(self, boxes: np.ndarray, readings: list[Reading]) -> None:
        self.boxes, self.readings = boxes, readings
        self.is_read, self.is_seen, self.is_line = np.zeros((3, len(boxes)), bool)

    @property
    def counts(self) -> np.ndarray:
        return self.is_read | self.is_seen


class RapidOcrScorer:
    """value: the largest share of a frame that text covers, 0 to 1. values: one for each frame looked at.

    detail: frames: second of each, and of the boxes that count the corners (x, y), as shares of width and height;
    with `read`, the text and its confidence too. Then `samples`: the number of frames they were chosen from, and
    `text`: what was read, once.
    """

    version = "3"

    def __init__(self, options: RapidOcrOptions) -> None:
        self.options = options
        self.needs = FrameRequest("even", options.frames)
        self.cost = 100.0 * options.frames
        if options.read:
            self.needs = FrameRequest("even", max(options.samples, options.frames), max_side=_MAX_SIDE)
            self.cost += 100.0
        self._engine: TextEngine | None = None

    def missing(self) -> list[str]:
        return missing_packages("rapidocr", {"rapidocr": "ea-data[ocr]", "onnxruntime": "ea-data[ocr]"})

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """frames.pixels: uint8 (N, H, W, 3). Raises MissingPackageError without the extra `ocr`."""
        return self._read(frames) if self.options.read else self._detect(frames)

    def detect(self, frame: np.ndarray) -> np.ndarray:
        """The boxes of one frame, uint8 (H, W, 3): corners (N, 4, 2) as x, y in pixels."""
        return self.engine.detect(frame)[0]

    def _detect(self, frames: Frames) -> Score:
        height, width = frames.pixels.shape[1:3]
        found = [self.detect(frame) for frame in frames.pixels]
        values = tuple(round(union_area(boxes, height, width), 6) for boxes in found)
        looked = [
            {"second": round(float(second), 3), "boxes": _shares(boxes, height, width)}
            for second, boxes in zip(frames.seconds, found, strict=True)
        ]
        return Score(max(values), values, {"frames": looked})

    def _read(self, frames: Frames) -> Score:
        height, width = frames.pixels.shape[1:3]
        looks = self._looks(frames.pixels)
        values, looked, texts = [], [], dict[str, None]()
        for number, look in sorted(looks.items()):
            kept = np.flatnonzero(look.counts)
            values.append(round(union_area(look.boxes[kept], height, width), 6))
            readings = [look.readings[i] for i in kept]
            looked.append(
                {
                    "second": round(float(frames.seconds[number]), 3),
                    "boxes": _shares(look.boxes[kept], height, width),
                    "texts": [reading.text for reading in readings],
                    "confidences": [round(reading.confidence, 3) for reading in readings],
                }
            )
            texts |= dict.fromkeys(
                look.readings[i].text if look.is_read[i] else "(not readable)" for i in kept
            )
        detail = {"frames": looked, "samples": len(frames.pixels), "text": " | ".join(texts)}
        return Score(max(values), tuple(values), detail)

    def _looks(self, pixels: np.ndarray) -> dict[int, _Look]:
        """The frames looked at, by number: spread evenly, with new strokes, and beside lines seen only once."""
        options, count = self.options, len(pixels)
        most = max(options.frames, options.most_frames)
        even = np.floor((np.arange(options.frames) + 0.5) / options.frames * count)
        strokes = Strokes(pixels)
        looks = {int(number): self._look(pixels, strokes, int(number)) for number in even}
        if count == 1:
            return looks
        while len(looks) < most and (number := strokes.next_look(list(looks))) is not None:
            looks[number] = self._look(pixels, strokes, number)
        for number in sorted(looks):
            if self._mark_seen(looks) and len(looks) < most:
                beside = self._beside(pixels, looks, number)
                looks |= {n: self._look(pixels, strokes, n) for n in beside}
        self._mark_seen(looks)
        if not any(look.counts.any() for look in looks.values()):
            held = strokes.held(pixels)
            look = None if held is None else self._look_at(held, strokes.is_held)
            if look is not None and look.counts.any():
                looks[int(even[len(even) // 2])] = look
        return looks

    def _look(self, pixels: np.ndarray, strokes: Strokes, number: int) -> _Look:
        """The text of a frame; if there is none, that of the frame without what is not laid over it."""
        is_laid_over = partial(strokes.is_laid_over, number)
        look = self._look_at(pixels[number], is_laid_over)
        if look.counts.any() or len(pixels) == 1:
            return look
        alone = strokes.isolate(number, pixels[number])
        other = look if alone is None else self._look_at(alone, is_laid_over)
        return other if other.counts.any() else look

    def _look_at(self, frame: np.ndarray, is_laid_over: Callable[[Place], bool]) -> _Look:
        height, width = frame.shape[:2]
        boxes, scores = self.engine.detect(frame)
        areas = [union_area(box[None], height, width) for box in boxes]
        largest = np.sort(np.argsort(-np.array(areas), kind="stable")[:_MOST_READ])
        boxes, scores = boxes[largest], scores[largest]
        readings = self.engine.read(frame, boxes)
        look = _Look(boxes, readings)
        for line in lines(boxes):
            sure = [i for i in line if readings[i].confidence >= self.options.confidence]
            if is_text("".join(readings[i].text for i in sure), self.options.min_chars):
                look.is_read[sure] = True
        for i in np.flatnonzero(~look.is_read):
            if self.options.unread == 1 or not _is_line_shaped(boxes[i], height, width):
                continue
            left, top, right, bottom = bounds(boxes[i])
            place = (left / width, top / height, right / width, bottom / height)
            could_be = partial(could_be_text, readings[i], self.options.min_chars)
            look.is_seen[i] = could_be(_GUESS_OVER) and is_laid_over(place)
            look.is_line[i] = (
                scores[i] >= self.options.unread
                and could_be(_GUESS)
                and (_is_inside(boxes[i], width) or is_text(readings[i].text, self.options.min_chars))
                and not look.is_seen[i]
            )
        return look

    def _mark_seen(self, looks: dict[int, _Look]) -> bool:
        """Marks lines that stand at one place in two frames. Returns whether any stands alone."""
        alone = False
        for number, look in looks.items():
            for i in np.flatnonzero(look.is_line):
                others = (other for key, other in looks.items() if key != number)
                look.is_seen[i] = any(
                    overlap(look.boxes[i], other.boxes[j]) >= _STEADY
                    for other in others
                    for j in np.flatnonzero(other.is_line)
                )
                alone |= not look.is_seen[i]
        return alone

    def _beside(self, pixels: np.ndarray, looks: dict[int, _Look], number: int) -> list[int]:
        """The frame before or after one in which a line stands alone, whichever is more like it there."""
        look = looks[number]
        for i in np.flatnonzero(look.is_line & ~look.is_seen):
            left, top, right, bottom = (max(0, round(side)) for side in bounds(look.boxes[i]))
            place = np.s_[top : bottom + 1, left : right + 1]
            near = [n for n in (number - 1, number + 1) if 0 <= n < len(pixels) and n not in looks]
            here = pixels[number][place].astype(np.int16)
            if near:
                return [min(near, key=lambda n: float(np.abs(pixels[n][place] - here).mean()))]
        return []

    @property
    def engine(self) -> TextEngine:
        if self._engine is None:
            if missing := self.missing():
                raise MissingPackageError("; ".join(missing))
            options = self.options
            self._engine = TextEngine(options.side, options.score, options.largest)
        return self._engine


def is_text(text: str, min_chars: int) -> bool:
    """True if a reading has enough letters and digits, and is not one of them over and over."""
    signs = _signs(text)
    if sum(map(str.isalnum, signs)) < min_chars:
        return False
    return min_chars == 1 or max(Counter(signs).values()) <= _SAME * len(signs)


def _signs(text: str) -> list[str]:
    """The signs of a text, without spaces, with rings of every size and name as one letter."""
    return [sign for sign in text.casefold().replace("0", "o") if not sign.isspace()]


def could_be_text(reading: Reading, min_chars: int, confidence: float) -> bool:
    """True if the reading of an unknown script is not a bad guess: too few letters, or sure enough of them. Two
    that are the same are rings."""
    letters = [letter for letter in _signs(reading.text) if letter.isalnum()]
    if len(letters) < min_chars:
        return len(letters) < 2 or len(set(letters)) > 1
    return reading.confidence >= confidence and is_text(reading.text, min_chars)


def _is_line_shaped(box: np.ndarray, height: int, width: int) -> bool:
    """True if a box has the shape of a line that does not reach from edge to edge."""
    along, tall = shape_of(box)
    left, _, right, _ = bounds(box)
    return (
        along >= _LONG * tall
        and _TALL[0] <= tall / min(height, width) <= _TALL[1]
        and (left > _EDGE * width or right < (1 - _EDGE) * width)
    )


def _is_inside(box: np.ndarray, width: int) -> bool:
    left, _, right, _ = bounds(box)
    return left > _EDGE * width and right < (1 - _EDGE) * width


def _shares(boxes: np.ndarray, height: int, width: int) -> list[Any]:
    return np.round(boxes / (width, height), 4).tolist()
