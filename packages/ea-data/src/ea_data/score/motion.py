"""The scorers `dis` and `farneback`: how much a clip moves, from OpenCV's dense optical flow.

`dis` is in frame diagonals per second, so that one threshold suits every size and frame rate. `farneback` is the
score of EasyAnimate V2's script: pixels between frames half a second apart, at native size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ea_data.options import NoOptions, Options
from ea_data.protocols import FrameRequest, Frames, Score

#: Two gray frames (H, W) uint8 -> flow (H, W, 2) in pixels.
Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]
#: Rows and columns of the motion field that the report draws.
ROWS, COLUMNS = 4, 6


class Strongest:
    """Takes the flow of one pair of frames after another, and keeps that of the pair that moves most."""

    def __init__(self) -> None:
        self.length = -1.0
        self.shown: dict[str, Any] = {}

    def __call__(self, field: np.ndarray, second: float) -> float:
        """field: (H, W, 2) in pixels. second: of the pair's first frame. Returns the mean length in pixels."""
        length = float(np.hypot(field[..., 0], field[..., 1]).mean())
        if length > self.length:
            self.length, self.shown = length, _coarse(field, second)
        return length

    def score(self, values: Sequence[float], unit: str) -> Score:
        """The Score of a clip: the mean of its values, and this flow for the report."""
        values = tuple(round(value, 6) for value in values)
        flow = {"flow": self.shown} if self.shown else {}
        return Score(round(float(np.mean(values)), 6) if values else 0.0, values, {"unit": unit, **flow})

    def diagonal_score(self, lengths: Iterable[float], frames: Frames) -> Score:
        """The Score of lengths in pixels, one for each pair of frames, in frame diagonals per second."""
        diagonal = math.hypot(*frames.pixels.shape[1:3])
        pairs = zip(lengths, np.diff(frames.seconds), strict=True)
        rates = [length / diagonal / float(gap) for length, gap in pairs if gap > 0]
        return self.score(rates, "frame diagonals a second")


def _coarse(field: np.ndarray, second: float) -> dict[str, Any]:
    """Means over a grid of cells, as shares of width and height."""
    height, width = field.shape[:2]
    rows, columns = min(ROWS, height), min(COLUMNS, width)
    vectors = [
        np.round(cell.mean((0, 1), dtype=np.float64) / (width, height), 4).tolist()
        for band in np.array_split(field, rows, axis=0)
        for cell in np.array_split(band, columns, axis=1)
    ]
    return {"second": round(float(second), 3), "rows": rows, "columns": columns, "vectors": vectors}


def magnitudes(frames: Frames, flow: Flow, strongest: Strongest) -> Iterator[float]:
    """The mean length of the flow between neighbouring frames, in pixels. frames.pixels: uint8 (N, H, W)."""
    pixels = np.ascontiguousarray(frames.pixels)
    for (before, after), second in zip(pairwise(pixels), frames.seconds, strict=False):
        yield strongest(flow(before, after), second)


class DisOptions(Options):
    """fps: frames per second that are compared. max_side: pixels that the longer side is scaled down to. preset: of
    OpenCV's DIS, from fast to exact."""

    fps: float = Field(4.0, gt=0)
    max_side: int = Field(480, ge=64)
    preset: Literal["ultrafast", "fast", "medium"] = "medium"


class DisScorer:
    """Mean flow by dense inverse search (Kroeger et al., 2016, arXiv:1603.03590), in frame diagonals per second.

    values: one for each pair of frames. value: their mean, 0 for a clip of one frame.
    """

    version = "1"
    cost = 400.0
    videos_only = True

    def __init__(self, options: DisOptions) -> None:
        self.options = options
        self.needs = FrameRequest("fps", options.fps, options.max_side, "gray")
        self._flow: Flow | None = None

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """frames.pixels: uint8 (N, H, W)."""
        if self._flow is None:
            self._flow = dis_flow(self.options.preset)
        strongest = Strongest()
        return strongest.diagonal_score(magnitudes(frames, self._flow, strongest), frames)


def dis_flow(preset: str) -> Flow:
    """OpenCV's DIS with a preset ("ultrafast", "fast", "medium"), on one core: the same bits each time."""
    import cv2

    cv2.setNumThreads(1)  # one of many workers, it keeps to one core
    number = getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}")
    search = cv2.DISOpticalFlow.create(number)

    def flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        start = np.zeros((*before.shape, 2), np.float32)  # DIS takes its contents for a first guess
        return search.calc(before, after, start)

    return flow


class FarnebackScorer:
    """EasyAnimate V2's motion score: OpenCV's Farneback flow (0.5, 3, 15, 3, 5, 1.2) at native size, pixels.

    Every int(fps / 2)-th frame is compared with the one before. It underrates fast motion: a pan of 27 pixels reads
    as about 10.
    """

    version = "1"
    needs = FrameRequest("stride", 2, 0, "gray")
    cost = 3000.0
    videos_only = True

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """frames.pixels: uint8 (N, H, W)."""
        strongest = Strongest()
        lengths = list(magnitudes(frames, _farneback, strongest))
        return strongest.score(lengths, "pixels in half a second")


def _farneback(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    import cv2

    start = np.zeros((*before.shape, 2), np.float32)
    return cv2.calcOpticalFlowFarneback(before, after, start, 0.5, 3, 15, 3, 5, 1.2, 0)
