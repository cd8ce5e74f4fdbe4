"""The rate and size that written clips are brought to."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

#: Rates that people write with two or three decimals.
_NTSC = [Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60, 120)]
_SLOWEST, _FASTEST = 1, 240
_SMALLEST, _LARGEST = 16, 16384


@dataclass(frozen=True, slots=True)
class Target:
    """fps: None keeps a clip's rate. width, height: None keeps the size; width None: height is the short side."""

    fps: Fraction | None = None
    width: int | None = None
    height: int | None = None

    @classmethod
    def of(cls, fps: str, size: str) -> Target:
        """From texts as `read_rate` and `read_size` return them."""
        width, height = _sides(size) if size else (None, None)
        return cls(Fraction(fps) if fps else None, width, height)

    def keeps(self, fps: Fraction, width: int, height: int) -> bool:
        """True if a clip of this rate and size has both already."""
        return self.fps in (None, fps) and self.size(width, height) == (width, height)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of what becomes of a picture of this size."""
        if self.height is None:
            return width, height
        if self.width is not None:
            return self.width, self.height
        scale = Fraction(self.height, min(width, height))
        long = 2 * round(max(width, height) * scale / 2)
        return (long, self.height) if width >= height else (self.height, long)


def read_rate(value: object) -> str:
    """A rate such as 24, "23.976" or "30000/1001" as an exact fraction in text. Raises ValueError."""
    text = str(value).strip()
    expected = f"must be {_SLOWEST} to {_FASTEST} frames a second, such as 24, 23.976 or 30000/1001"
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(expected) from None
    if not _SLOWEST <= rate <= _FASTEST:
        raise ValueError(expected)
    if rate.denominator != 1 and "/" not in text:
        rate = next((exact for exact in _NTSC if abs(exact - rate) < Fraction(6, 1000)), rate)
    return str(rate.limit_denominator(10_000))


def read_size(value: object) -> str:
    """A size as text: "512" (the short side) or "512x288" (width and height). Raises ValueError."""
    text = str(value).strip().lower()
    expected = (
        f"must be a short side such as 512, or width x height such as 512x288, in even pixels from {_SMALLEST} to "
        f"{_LARGEST}"
    )
    try:
        sides = [side for side in _sides(text) if side is not None]
    except ValueError:
        raise ValueError(expected) from None
    if any(side % 2 or not _SMALLEST <= side <= _LARGEST for side in sides):
        raise ValueError(expected)
    return text


def _sides(text: str) -> tuple[int | None, int]:
    width, x, height = text.partition("x")
    return (int(width), int(height)) if x else (None, int(width))


def frame_ticks(num_frames: int, fps: Fraction, target: Fraction) -> list[int]:
    """The tick at the target rate that is nearest to each frame of a constant rate, and that of the clip's end."""
    ratio = target / fps
    end = max(1, _nearest(num_frames * ratio))
    return [*(min(_nearest(number * ratio), end) for number in range(num_frames)), end]


def time_ticks(times: np.ndarray, fps: Fraction, target: Fraction) -> list[int]:
    """The same of frames at these times, in seconds from the first; the last is shown for one interval at fps."""
    ticks = np.rint(times * float(target)).astype(np.int64)
    # at the same rate, every last frame has its tick
    end = int(ticks[-1]) + 1 if fps == target else max(1, round((times[-1] + float(1 / fps)) * float(target)))
    return [*np.minimum(ticks, end).tolist(), end]


def _nearest(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)
