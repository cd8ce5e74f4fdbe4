"""Measures of a video's frames and of the joins between its parts: colour, sharpness, motion. NumPy and Pillow only.

Shapes: frames (H, W, 3) uint8 in sRGB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

#: frames on either side of a join whose colour and sharpness are compared
AROUND = 24
#: pairs of frames on either side of a join whose motion is compared with that across it
FLOWS_AROUND = 3
#: frames are made no larger than this before their motion is estimated
_FLOW_SIDE = 96
#: blocks of this many pixels move as one
_BLOCK = 8
#: against noise where a block has hardly any gradient, of levels 0..1
_DAMPING = 1e-3
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(1)  # D65


def lab(colour: np.ndarray) -> np.ndarray:
    """sRGB colours (..., 3) in 0..255 -> CIE L*a*b* (..., 3), D65."""
    levels = np.asarray(colour, np.float64) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    t = linear @ _TO_XYZ.T / _WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )


def delta_e(one: np.ndarray, other: np.ndarray) -> float:
    """CIE76: the distance of two sRGB colours (3,) in 0..255 in L*a*b*; about 2.3 is just noticeable."""
    return float(np.linalg.norm(lab(one) - lab(other)))


def grey(frame: np.ndarray) -> np.ndarray:
    """Luma (H, W) in 0..1, float32, BT.601."""
    return (frame @ np.array([0.299, 0.587, 0.114], np.float32)) / np.float32(255)


def sharpness(levels: np.ndarray) -> float:
    """The variance of the Laplacian of (H, W), after Pech-Pacheco et al. 2000; larger is sharper."""
    inner = levels[1:-1, 1:-1]
    laplacian = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:] - 4 * inner
    return float(laplacian.var()) if laplacian.size else 0.0


def block_flow(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Motion from a picture (H, W) to the next, in pixels: (2, h, w), x and y of each block of 8x8 pixels.

    Least squares of the brightness equation (Lucas and Kanade 1981) on one level, so it is right for motions of about a
    pixel and too small for much larger ones. A block without texture does not move.
    """
    size = [side // _BLOCK * _BLOCK for side in one.shape]
    if 0 in size:
        return np.zeros((2, 1, 1))
    mean = (one + other) / 2
    dy, dx = (np.asarray(one) for one in np.gradient(mean))
    dt = other - one

    def summed(values: np.ndarray) -> np.ndarray:
        cut = values[: size[0], : size[1]]
        return cut.reshape(size[0] // _BLOCK, _BLOCK, size[1] // _BLOCK, _BLOCK).sum((1, 3))

    xx, yy, xy = summed(dx * dx) + _DAMPING, summed(dy * dy) + _DAMPING, summed(dx * dy)
    xt, yt = -summed(dx * dt), -summed(dy * dt)
    determinant = xx * yy - xy * xy
    return np.stack([yy * xt - xy * yt, xx * yt - xy * xt]) / determinant


@dataclass
class JoinMeter:
    """Measures of joins, from frames that are handed over one by one; memory grows by a few numbers a frame.

    joins: the frames that are the first after a join; 0 joins the last frame to the first (a loop). num_frames: of the
    video.
    """

    joins: Sequence[int]
    num_frames: int
    _colours: list[np.ndarray] = field(default_factory=list)
    _sharpness: list[float] = field(default_factory=list)
    _flows: dict[int, np.ndarray] = field(default_factory=dict)
    _first: np.ndarray | None = None
    _last: np.ndarray | None = None
    _scale: float = 1.0

    def __post_init__(self) -> None:
        reach = range(-FLOWS_AROUND, FLOWS_AROUND + 1)
        #: flow n is that from frame n - 1 to frame n
        self._wanted = {(join + i) % self.num_frames for join in self.joins for i in reach}

    def watched(self, write: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], None]:
        """A function that measures a frame and hands it on to `write`."""

        def write_measured(frame: np.ndarray) -> None:
            self.add(frame)
            write(frame)

        return write_measured

    def add(self, frame: np.ndarray) -> None:
        """The next frame."""
        number = len(self._colours)
        levels = grey(frame)
        self._colours.append(frame.reshape(-1, 3).mean(0))
        self._sharpness.append(sharpness(levels))
        small = self._small(levels)
        if self._last is not None and number in self._wanted:
            self._flows[number] = block_flow(self._last, small)
        self._first = small if self._first is None else self._first
        self._last = small

    def measured(self) -> list[dict[str, Any]]:
        """For each join, in order of its frame: {"frame", "delta_e", "sharpness", "flow_jump"}.

        delta_e: between the mean colours of up to 24 frames before and after. sharpness: after / before, of the same
        frames. flow_jump: how far the motion across the join is from the mean motion of three pairs of frames before
        and after it, in pixels a frame, as the mean over blocks.
        """
        if 0 in self.joins and self._first is not None and self._last is not None:
            self._flows[0] = block_flow(self._last, self._first)
        return [self._measure(join) for join in sorted(self.joins)]

    def _measure(self, join: int) -> dict[str, Any]:
        count = self.num_frames
        each = min(AROUND, count // 2) if join == 0 else AROUND
        after = range(join, min(join + each, count))
        before = range(count - each, count) if join == 0 else range(max(join - each, 0), join)
        colours = [np.mean([self._colours[i] for i in part], axis=0) for part in (before, after)]
        sharp = [float(np.mean([self._sharpness[i] for i in part])) for part in (before, after)]
        around = [
            self._flows[number]
            for i in (*range(-FLOWS_AROUND, 0), *range(1, FLOWS_AROUND + 1))
            if (number := join + i if join else i % count) in self._flows
        ]
        jump = 0.0
        if around:
            off = self._flows[join] - np.mean(around, axis=0)
            jump = float(np.hypot(*off).mean()) * self._scale
        return {
            "frame": join,
            "delta_e": round(delta_e(*colours), 4),
            "sharpness": round((sharp[1] + 1e-9) / (sharp[0] + 1e-9), 4),
            "flow_jump": round(jump, 4),
        }

    def _small(self, levels: np.ndarray) -> np.ndarray:
        height, width = levels.shape
        self._scale = max(1.0, max(height, width) / _FLOW_SIDE)
        if self._scale == 1.0:
            return levels
        size = max(1, round(width / self._scale)), max(1, round(height / self._scale))
        return np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BOX))


def worst_join(joins: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The join with the largest change of colour."""
    return max(joins, key=lambda one: one["delta_e"])
