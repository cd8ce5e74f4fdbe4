"""The scorer `rapidocr`: the share of a clip's frames that text covers.

RapidOCR's detector alone (PP-OCR, its model is in the package); the text is not read. Its boxes are somewhat larger
than the ink.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from ea_data.options import Options, missing_packages
from ea_data.protocols import FrameRequest, Frames, Score
from ea_runtime.errors import MissingPackageError

_LINES_PER_PIXEL = 4  # at which the union of boxes is measured


class RapidOcrOptions(Options):
    """frames: how many for each clip, spread evenly; 1: the middle one. side: most pixels of the longer side that the
    detector sees. score: lowest confidence of a box. largest: boxes over this share of the frame do not count, as
    the detector puts one box around all of a blurred picture."""

    frames: int = Field(3, ge=1)
    side: int = Field(640, ge=64)
    score: float = Field(0.5, gt=0, lt=1)
    largest: float = Field(0.5, gt=0, le=1)


def union_area(boxes: np.ndarray, height: int, width: int) -> float:
    """The area that convex quadrilaterals cover together, over the frame's: 0 to 1.

    boxes: (N, 4, 2) corners as x, y in pixels, in order around the box. Overlaps count once, areas outside
    the frame do not. Exact along x; along y, on lines a quarter of a pixel apart.
    """
    if not len(boxes):
        return 0.0
    boxes = np.asarray(boxes, np.float64)
    num_lines = height * _LINES_PER_PIXEL
    y = (np.arange(num_lines) + 0.5)[:, None, None] / _LINES_PER_PIXEL  # S 1 1
    here, there = boxes, np.roll(boxes, -1, axis=1)  # N 4 2
    low, high = np.minimum(here[..., 1], there[..., 1]), np.maximum(here[..., 1], there[..., 1])  # N 4
    is_crossed = (low <= y) & (y < high)  # S N 4
    rise = np.where(there[..., 1] == here[..., 1], 1.0, there[..., 1] - here[..., 1])
    x = here[..., 0] + (y - here[..., 1]) / rise * (there[..., 0] - here[..., 0])  # S N 4
    left = np.where(is_crossed, x, np.inf).min(-1)  # S N
    right = np.where(is_crossed, x, -np.inf).max(-1)
    left, right = np.clip([left, right], 0, width)  # a box that is not crossed: left >= right
    order = np.argsort(left, axis=1)
    left, right = np.take_along_axis(left, order, 1), np.take_along_axis(right, order, 1)
    reached = np.maximum.accumulate(right, axis=1)  # how far the boxes before reach
    before = np.concatenate([np.zeros((num_lines, 1)), reached[:, :-1]], axis=1)
    covered = np.maximum(0, right - np.maximum(left, before)).sum()
    return float(covered / (num_lines * width))


class RapidOcrScorer:
    """value: the largest share of a frame that text boxes cover, 0 to 1. values: one for each frame.

    detail: frames: second and boxes of each, their corners (x, y) as shares of width and height.
    """

    version = "1"

    def __init__(self, options: RapidOcrOptions) -> None:
        self.options = options
        self.needs = FrameRequest("even", options.frames)
        self.cost = 250.0 * options.frames
        self._engine: Any = None

    def missing(self) -> list[str]:
        return missing_packages("rapidocr", {"rapidocr": "ea-data[ocr]", "onnxruntime": "ea-data[ocr]"})

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """frames.pixels: uint8 (N, H, W, 3). Raises MissingPackageError without the extra `ocr`."""
        height, width = frames.pixels.shape[1:3]
        found = [self.detect(frame) for frame in frames.pixels]
        values = tuple(round(union_area(boxes, height, width), 6) for boxes in found)
        shares = [np.round(boxes / (width, height), 4).tolist() for boxes in found]
        looked = [
            {"second": round(float(second), 3), "boxes": boxes}
            for second, boxes in zip(frames.seconds, shares, strict=True)
        ]
        return Score(max(values), values, {"frames": looked})

    def detect(self, frame: np.ndarray) -> np.ndarray:
        """The boxes of one frame, uint8 (H, W, 3): corners (N, 4, 2) as x, y in pixels."""
        if self._engine is None:
            self._engine = self._load()
        bgr = np.ascontiguousarray(frame[..., ::-1])
        boxes = self._engine(bgr, use_det=True, use_cls=False, use_rec=False).boxes
        if boxes is None:
            return np.zeros((0, 4, 2))
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4, 2)
        height, width = frame.shape[:2]
        is_text = [union_area(box[None], height, width) <= self.options.largest for box in boxes]
        return boxes[np.array(is_text, bool)]

    def _load(self) -> Any:
        if lines := self.missing():
            raise MissingPackageError("; ".join(lines))
        from rapidocr import RapidOCR

        return RapidOCR(
            params={
                "Global.log_level": "error",
                "Det.limit_type": "max",
                "Det.limit_side_len": self.options.side,
                "Det.box_thresh": self.options.score,
                # One of many workers, it keeps to one core, and its answer does not depend on their number.
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
