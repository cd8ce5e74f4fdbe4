"""Finds letter- and pillarbox: dark, even bars at two opposite sides of a picture, the same in every frame.

Of each frame that it sees, a finder keeps the brightness of rows and columns in 32 parts. A bar is as dark as its
outermost line, in every frame; at its inner edge, most parts brighten at once and at the same line in at least one
frame, as no shadow, vignette or night sky does. One of the two bars may have text in it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from ea_data.media.planes import luma

#: Fields across a row or column.
_PARTS = 32
#: Levels of 0 to 255: the brightest bar; how far its fields may be from its outermost lines; the step at its edge.
_DARKEST, _EVEN, _STEP = 56, 6, 10
#: Share of an edge's height that ringing next to it may have.
_RINGING = 0.2
#: Shares of the parts that have an edge, are clean in a bar, and are clean in a bar with text.
_EDGE, _CLEAN, _CLEAN_BESIDE_TEXT = 0.5, 0.95, 0.3
#: Share of the fields between the bars that are ever brighter than these: less are letters on a black card.
_SHOWN = 0.6
#: Thinnest bar (share of the side, and pixels), and the most of a side that both bars may take.
_THIN, _FEWEST_PIXELS, _MOST = 0.01, 2, 0.8
#: The thinner of two bars is at least this share of the other.
_ALIKE = 0.5


@dataclass(frozen=True, slots=True)
class Bars:
    """Widths in pixels, of a picture's left, top, right and bottom bar."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return any(self.as_list())

    def as_list(self) -> list[int]:
        return [self.left, self.top, self.right, self.bottom]

    def turned(self, rotation: int) -> Bars:
        """After the picture is turned counter-clockwise by a multiple of 90 degrees."""
        turns = rotation // 90 % 4
        sides = self.as_list()
        # what was at the top is at the left
        return Bars(*(sides[turns:] + sides[:turns]))

    def for_cropping(self) -> Bars:
        """The same, rounded up to even widths, as 4:2:0 needs them."""
        return Bars(*(size + size % 2 for size in self.as_list()))

    def share(self, width: int, height: int) -> float:
        """The part of a picture of this size, bars and all, that is bars: 0 to 1."""
        return 1 - (width - self.left - self.right) * (height - self.top - self.bottom) / (width * height)


NO_BARS = Bars()


class BarFinder:
    """Sees frames of one size, one by one."""

    def __init__(self) -> None:
        self._lowest: list[np.ndarray] = []
        self._highest: list[np.ndarray] = []

    def add(self, frame: Any) -> None:
        """Adds a frame of FFmpeg."""
        pixels, bits = luma(frame)
        scale = np.float32(1 << max(0, bits - 8))
        seen = [_parts(pixels) / scale, _parts(pixels.T) / scale]
        if not self._lowest:
            self._lowest, self._highest = [one.copy() for one in seen], seen
            return
        for low, high, one in zip(self._lowest, self._highest, seen, strict=True):
            np.minimum(low, one, out=low)
            np.maximum(high, one, out=high)

    @property
    def may_have_bars(self) -> bool:
        """True if the frames so far have bars, or were too dark to tell."""
        return bool(self.found()) or not self._highest or float(self._highest[0].max()) < _DARKEST

    def found(self) -> Bars:
        """The bars of all frames so far, in pixels of the frames."""
        if not self._lowest:
            return NO_BARS
        pairs = [_pair(low, high) for low, high in zip(self._lowest, self._highest, strict=True)]
        (top, bottom), (left, right) = pairs
        return Bars(left, top, right, bottom)


def _parts(pixels: np.ndarray) -> np.ndarray:
    """(H, W) -> float32 (H, 32): the mean of each field of a row."""
    width = pixels.shape[1]
    edges = np.linspace(0, width, min(_PARTS, width) + 1).astype(int)
    return np.add.reduceat(pixels, edges[:-1], axis=1, dtype=np.uint32) / np.diff(edges).astype(np.float32)


def _pair(low: np.ndarray, high: np.ndarray) -> tuple[int, int]:
    """The bars at the first and at the last lines. low, high: (lines, parts), the extremes of all frames."""
    levels = [float(np.median(low[place] + high[place]) / 2) for place in (slice(2), slice(-2, None))]
    if max(levels) > _DARKEST or abs(levels[0] - levels[1]) > _EVEN:
        return 0, 0
    # how far each field ever is from the bar's level
    first, last = (np.maximum(high - level, level - low) for level in levels)
    last = last[::-1]
    wanted = [_candidates(first), _candidates(last)]
    # a bar whose text hides its edge is looked for where the other one ends
    pairs = {*product(*wanted), *((size, size) for sizes in wanted for size in sizes)}
    ranked = sorted(pairs, key=lambda pair: (wanted[0].get(pair[0], 0) + wanted[1].get(pair[1], 0), *pair))
    for one, other in reversed(ranked):
        if one + other > _MOST * len(first) or min(one, other) < _ALIKE * max(one, other):
            continue
        clean = sorted((_cleanness(first, one), _cleanness(last, other)))
        shown = first[one : len(first) - other] > _STEP
        if clean[1] >= _CLEAN and clean[0] >= _CLEAN_BESIDE_TEXT and shown.mean() >= _SHOWN:
            return one + _softness(first, one), other + _softness(last, other)
    return 0, 0


def _candidates(away: np.ndarray) -> dict[int, int]:
    """Lines at which parts leave the bar's level, and how many parts each. away: (lines, parts)."""
    is_out = away > _STEP
    firsts = is_out.argmax(0)
    # ringing before an edge is weaker than the edge itself
    rises = np.diff(away, axis=0, prepend=away[:1])
    reach = np.minimum(firsts + np.arange(_ringing_lines(away) + 1)[:, None], len(away) - 1)
    edges = firsts + np.take_along_axis(rises, reach, 0).argmax(0)
    return dict(Counter(edges[is_out.any(0) & (firsts > 0)].tolist()).most_common(4))


def _cleanness(away: np.ndarray, size: int) -> float:
    """The share of a bar's parts that stay at its level; 0 without a clear edge at its end."""
    soft = _soft_lines(away)
    outer, inner, far = size - soft, size + soft, size + 3 * soft + 1
    if size < max(_FEWEST_PIXELS, _THIN * len(away)) or outer < 1 or far >= len(away):
        return 0.0
    step = away[inner] - away[outer - 1]
    # a gradient continues as it began
    is_edge = (step > _STEP) & (step > 2 * np.abs(away[far] - away[inner]))
    if is_edge.mean() < _EDGE:
        return 0.0
    calm = max(0, outer - _ringing_lines(away))
    is_clean = away[calm:outer].max(0) <= np.maximum(_EVEN, _RINGING * away[inner])
    if calm:
        is_clean &= away[:calm].max(0) <= _EVEN
    return float(is_clean.mean())


def _ringing_lines(away: np.ndarray) -> int:
    """Lines beside an edge that its compression may disturb: a block or two."""
    return max(8, 4 * _soft_lines(away))


def _soft_lines(away: np.ndarray) -> int:
    """Lines over which an edge may be soft."""
    return max(1, round(len(away) / 180))


def _softness(away: np.ndarray, size: int) -> int:
    """Lines after a bar's edge that are still mixed with it."""
    middle = np.median(away[size : size + _soft_lines(away) + 1], axis=1)
    return int((middle < 0.75 * middle[-1]).sum())
