"""Signatures of clips, by which duplicates are found: small pictures of their frames, RATE a second.

Shape legend: T frames at RATE a second, S frames at one a second.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

import numpy as np

RATE = 4
GRID = 12  # fields a side of a frame's luma
COLOURS = 4  # fields a side of its colour
#: Longer clips are compared over their first minute.
MOST_FRAMES = 60 * RATE
GREY = 2.5  # levels: a clip with less colour is grey
#: A bar at a frame's edge: at most this bright, and this even, in every frame (levels of 255).
_BAR_LEVEL, _BAR_SPREAD = 56, 14
_MOST_BAR = 0.25  # of the side, for each bar
_LIT = 0.7  # share of the picture beside a bar that is brighter
_FORMAT = 2


@dataclass(frozen=True, slots=True)
class Signature:
    """luma: uint8 (T, GRID, GRID), means over the fields of a frame without its bars. colour: int8 (S, COLOURS,
    COLOURS, 2), Cb and Cr, 0 for grey."""

    luma: np.ndarray
    colour: np.ndarray

    @property
    def colourfulness(self) -> float:
        """The root mean square of its colour in the second that has most, levels of 255."""
        return float(np.sqrt((self.colour.astype(np.float32) ** 2).mean((1, 2, 3)).max()))

    def pack(self) -> str:
        """As text: differences from frame to frame, deflated."""
        luma = np.diff(self.luma.reshape(len(self.luma), -1), axis=0, prepend=np.uint8(0))
        colour = np.diff(
            self.colour.view(np.uint8).reshape(len(self.colour), -1), axis=0, prepend=np.uint8(0)
        )
        head = np.array([_FORMAT, len(luma), len(colour)], np.uint8).tobytes()
        return base64.b64encode(zlib.compress(head + luma.tobytes() + colour.tobytes(), 9)).decode()

    @classmethod
    def unpack(cls, text: str) -> Signature:
        """Raises ValueError for anything else than packed text."""
        try:
            data = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        size, size_colour = GRID**2, 2 * COLOURS**2
        if len(data) < 3 or data[0] != _FORMAT:
            raise ValueError("it has another format")
        frames, seconds = int(data[1]), int(data[2])
        if not frames or not seconds or len(data) != 3 + frames * size + seconds * size_colour:
            raise ValueError("it has another length")
        luma, colour = np.split(data[3:], [frames * size])
        luma = np.cumsum(luma.reshape(frames, size), 0, dtype=np.uint8)
        colour = np.cumsum(colour.reshape(seconds, size_colour), 0, dtype=np.uint8).view(np.int8)
        return cls(luma.reshape(-1, GRID, GRID), colour.reshape(-1, COLOURS, COLOURS, 2))


def sign(pixels: np.ndarray, seconds: np.ndarray) -> tuple[Signature, float]:
    """The signature of a clip, and the share of its frames that is no bar.

    pixels: uint8 (N, H, W, 3), N >= 1. seconds: their times, (N,), ascending.
    """
    import cv2

    seconds = seconds - seconds[0]
    count = min(MOST_FRAMES, int(seconds[-1] * RATE + 0.5) + 1)
    wanted = np.arange(count) / RATE
    after = np.clip(np.searchsorted(seconds, wanted), 1, max(1, len(seconds) - 1))
    is_before = wanted - seconds[after - 1] <= seconds[np.minimum(after, len(seconds) - 1)] - wanted
    numbers = np.minimum(np.where(is_before, after - 1, after), len(seconds) - 1)
    top, bottom, left, right = _without_bars(pixels[numbers])
    luma, colour = [], []
    for place, number in enumerate(numbers):
        frame = np.ascontiguousarray(pixels[number, top:bottom, left:right])
        planes = cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb)
        luma.append(cv2.resize(planes[..., 0], (GRID, GRID), interpolation=cv2.INTER_AREA))
        if place % RATE == 0:
            small = cv2.resize(planes[..., 1:], (COLOURS, COLOURS), interpolation=cv2.INTER_AREA)
            colour.append((small[..., ::-1].astype(np.int16) - 128).clip(-127, 127).astype(np.int8))
    share = (bottom - top) * (right - left) / (pixels.shape[1] * pixels.shape[2])
    return Signature(np.stack(luma), np.stack(colour)), share


def _without_bars(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """The part of the frames inside their bars: top, bottom, left, right.

    Beside a bar, most of the picture is brighter than the bar at some time: so a dark ground is none.
    """
    high, low = pixels.max((0, 3)).astype(np.int16), pixels.min((0, 3)).astype(np.int16)
    height, width = high.shape
    top, bottom = _bars(high, low)
    left, right = _bars(high[top : height - bottom].T, low[top : height - bottom].T)
    return top, height - bottom, left, width - right


def _bars(high: np.ndarray, low: np.ndarray) -> tuple[int, int]:
    """Rows of the bars above and below. high, low: the extremes of each pixel over time, (H, W)."""
    is_bar = (high.max(1) <= _BAR_LEVEL) & (high.max(1) - low.min(1) <= _BAR_SPREAD)
    found = []
    for rows, bright in ((is_bar, high), (is_bar[::-1], high[::-1])):
        most = int(len(rows) * _MOST_BAR)
        bar = int(np.argmin(np.append(rows[:most], False)))
        if bar:
            bar += 1  # the row beside a bar is a mixture of both
            level = bright[: bar - 1].max()
            is_lit = (bright[bar : bar + 2] > level + _BAR_SPREAD).mean() >= _LIT
            bar = bar if is_lit else 0
        found.append(bar)
    return found[0], found[1]
