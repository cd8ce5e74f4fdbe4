"""The metric `warping`: how far a frame is from the one before it, once that is moved along the optical flow."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from ea_data.options import Options
from ea_data.score.motion import dis_flow

if TYPE_CHECKING:
    from ea_runtime.evaluation.clip import Clip

#: a pixel counts where the flow there and back ends within this share of both lengths, and this many squared pixels
#: (Sundaram et al. 2010)
_SHARE, _SLACK = 0.01, 0.5


class WarpingOptions(Options):
    """max_side: pixels that the longer side is scaled down to. preset: of OpenCV's DIS flow, from fast to exact."""

    max_side: int = Field(480, ge=32)
    preset: Literal["ultrafast", "fast", "medium"] = "medium"


class Warping:
    """Mean absolute difference, in levels of 255, of each frame and the one before, moved along DIS flow (Lai et al.
    2018), where nothing is hidden or uncovered. Texture that boils raises it, motion by itself does not.

    None for one frame.
    """

    def __init__(self, options: WarpingOptions) -> None:
        self.options = options
        self._flow = dis_flow(options.preset)

    def __call__(self, clip: Clip) -> float | None:
        """clip.frames: uint8 (T, H, W, 3)."""
        frames = [self._small(frame) for frame in clip.frames]
        errors = [self._error(one, other) for one, other in pairwise(frames)]
        return float(np.mean(errors)) if errors else None

    def _error(self, before: np.ndarray, after: np.ndarray) -> float:
        import cv2

        grey, grey_after = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after))
        back = self._flow(grey_after, grey)  # of each pixel of `after`, where it was
        there = _moved(self._flow(grey, grey_after), back)
        lengths = (there**2).sum(-1) + (back**2).sum(-1)
        is_seen = ((there + back) ** 2).sum(-1) <= _SHARE * lengths + _SLACK
        height, width = grey.shape
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        is_seen &= (x + back[..., 0] >= 0) & (x + back[..., 0] <= width - 1)
        is_seen &= (y + back[..., 1] >= 0) & (y + back[..., 1] <= height - 1)
        if not is_seen.any():
            return 0.0
        return float(cv2.absdiff(_moved(before, back), after)[is_seen].mean(dtype=np.float64))

    def _small(self, frame: np.ndarray) -> np.ndarray:
        import cv2

        scale = self.options.max_side / max(frame.shape[:2])
        if scale >= 1:
            return np.ascontiguousarray(frame)
        size = tuple(max(1, round(side * scale)) for side in (frame.shape[1], frame.shape[0]))
        return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _moved(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """`values` (H, W, C), read where the flow (H, W, 2) points."""
    import cv2

    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(
        values, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
