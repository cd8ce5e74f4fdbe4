"""The scorers `dis` and `farneback`: how much a clip moves, from OpenCV's dense optical flow.

`dis` is in frame diagonals a second, so that one threshold holds for every size and frame rate. `farneback` is what
EasyAnimate V2's script computes: pixels between frames half a second apart, at native size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ea_data.options import NoOptions, Options, missing_packages
from ea_data.protocols import FrameRequest, Frames, Score

Flow = Callable[
    [np.ndarray, np.ndarray], np.ndarray
]  # two gray frames (H, W) uint8 -> flow (H, W, 2) in pixels


#: Rows and columns of the motion field that the report draws.
ROWS, COLUMNS = 4, 6


class Strongest:
    """Takes the flow of one pair of frames after the other, and remembers that of the pair that moves most."""

    def __init__(self) -> None:
        self.length = -1.0
        self.shown: dict[str, Any] = {}

    def __call__(self, field: np.ndarray, second: float) -> float:
        """field: (H, W, 2) in pixels; second: of the pair's first frame. Returns the mean length in pixels."""
        length = float(np.hypot(field[..., 0], field[..., 1]).mean())
        if length > self.length:
            self.length, self.shown = length, _coarse(field, second)
        return length

    @property
    def detail(self) -> dict[str, Any]:
        """For a score's detail: `flow`, where there was any."""
        return {"flow": self.shown} if self.shown else {}


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
    """The mean length of the flow of each neighbouring pair, in pixels. frames.pixels: uint8 (N, H, W)."""
    for (before, after), second in zip(pairwise(frames.pixels), frames.seconds, strict=False):
        yield strongest(flow(before, after), second)


class DisOptions(Options):
    """fps: frames a second that are compared. max_side: pixels that the longer side is scaled down to. preset: of
    OpenCV's DIS, from fast to exact."""

    fps: float = Field(4.0, gt=0)
    max_side: int = Field(480, ge=64)
    preset: Literal["ultrafast", "fast", "medium"] = "medium"


class DisScorer:
    """Mean flow by dense inverse search (Kroeger et al., 2016, arXiv:1603.03590), in frame diagonals a second.

    values: one a pair of frames; value: their mean. A clip of one frame does not move: 0.
    """

    version = "1"
    cost = 400.0
    videos_only = True

    def __init__(self, options: DisOptions) -> None:
        self.options = options
        self.needs = FrameRequest("fps", options.fps, options.max_side, "gray")
        self._flow: Flow | None = None

    def missing(self) -> list[str]:
        return missing_packages("dis", {"cv2": "ea-data"})

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """frames.pixels: uint8 (N, H, W)."""
        if self._flow is None:
            self._flow = _dis(self.options.preset)
        diagonal = math.hypot(*frames.pixels.shape[1:3])
        gaps = np.diff(frames.seconds)
        strongest = Strongest()
        lengths = list(magnitudes(frames, self._flow, strongest))
        values = tuple(
            round(length / diagonal / float(gap), 6)
            for length, gap in zip(lengths, gaps, strict=True)
            if gap > 0
        )
        value = float(np.mean(values)) if values else 0.0
        return Score(round(value, 6), values, {"unit": "frame diagonals a second", **strongest.detail})


def _dis(preset: str) -> Flow:
    import cv2

    cv2.setNumThreads(1)  # a worker is one of many, and keeps to one core
    number = getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}")
    search = cv2.DISOpticalFlow.create(number)

    def flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        start = np.zeros((*before.shape, 2), np.float32)  # DIS takes what is in it for a first guess
        return search.calc(np.ascontiguousarray(before), np.ascontiguousarray(after), start)

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

    def missing(self) -> list[str]:
        return missing_packages("farneback", {"cv2": "ea-data"})

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """frames.pixels: uint8 (N, H, W)."""
        strongest = Strongest()
        values = tuple(round(value, 6) for value in magnitudes(frames, _farneback, strongest))
        value = float(np.mean(values)) if values else 0.0
        return Score(round(value, 6), values, {"unit": "pixels in half a second", **strongest.detail})


def _farneback(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    import cv2

    start = np.zeros((*before.shape, 2), np.float32)
    return cv2.calcOpticalFlowFarneback(
        np.ascontiguousarray(before), np.ascontiguousarray(after), start, 0.5, 3, 15, 3, 5, 1.2, 0
    )


def build_dis(options: DisOptions) -> DisScorer:
    return DisScorer(options)


def build_farneback(options: NoOptions) -> FarnebackScorer:
    return FarnebackScorer(options)
