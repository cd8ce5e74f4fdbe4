"""RapidOCR's detector and recogniser, whose models are in its package: one thread each, nothing is fetched.

Boxes are float64 (N, 4, 2), corners as x and y in pixels; frames are uint8 (H, W, 3) in RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ea_data.score.text_boxes import union_area


@dataclass(frozen=True, slots=True)
class Reading:
    """The text that a box was read as, and the mean confidence of its characters, 0 to 1."""

    text: str
    confidence: float


class TextEngine:
    """side: most pixels of the longer side that the detector sees. score: lowest confidence of a box. largest: boxes
    over this share of the frame are left out."""

    def __init__(self, side: int, score: float, largest: float) -> None:
        from rapidocr import RapidOCR

        self.largest = largest
        self._engine: Any = RapidOCR(
            params={
                "Global.log_level": "error",
                "Det.limit_type": "max",
                "Det.limit_side_len": side,
                "Det.box_thresh": score,
                # One of many workers, it keeps to one core, and its answer does not depend on their number.
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def detect(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The boxes of one frame and the detector's confidence in each: float64 (N, 4, 2) and (N,)."""
        found = self._engine(_bgr(frame), use_det=True, use_cls=False, use_rec=False)
        if found.boxes is None:
            return np.zeros((0, 4, 2)), np.zeros(0)
        boxes = np.asarray(found.boxes, np.float64).reshape(-1, 4, 2)
        height, width = frame.shape[:2]
        is_text = np.array([union_area(box[None], height, width) <= self.largest for box in boxes], bool)
        return boxes[is_text], np.asarray(found.scores, np.float64)[is_text]

    def read(self, frame: np.ndarray, boxes: np.ndarray) -> list[Reading]:
        """The reading of each box, alone: a box is read the same whatever else is in the frame."""
        crops = self._engine.crop_text_regions(_bgr(frame), boxes.astype(np.float32))
        readings = []
        for crop in crops:
            if min(crop.shape[:2]) < 2:
                readings.append(Reading("", 0.0))
                continue
            found = self._engine(crop, use_det=False, use_cls=False, use_rec=True)
            (text,), (confidence,) = found.txts, found.scores
            readings.append(Reading(" ".join(text.split()), float(confidence)))
        return readings


def _bgr(frame: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(frame[..., ::-1])
