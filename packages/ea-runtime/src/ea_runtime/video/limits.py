"""Limits of the kinds of file: what a format cannot hold is one line, before anything is made. Imports no numpy."""

from __future__ import annotations

from fractions import Fraction

from ea_runtime.errors import UserError

#: pixels in a row or column, by kind; a PNG holds more than memory does
MAX_SIDES = {"mp4": 16_384, "mov": 16_384, "webm": 65_534, "webp": 16_383, "gif": 65_535}
#: a GIF counts the time of a frame in 1/100 s, with 16 bits
MAX_GIF_DELAY = 65_535


def check_limits(kind: str, width: int, height: int, fps: float | Fraction) -> None:
    """Raise UserError for a size or a frame rate that a kind of file cannot hold. kind: a value of output's KINDS."""
    most = MAX_SIDES.get(kind, max(width, height))
    if max(width, height) > most:
        raise UserError(
            f".{kind} holds at most {most:,} pixels a side, got {width}x{height}; give a smaller size, or write .png "
            "or a folder of frames"
        )
    if kind == "gif" and 100 / fps >= MAX_GIF_DELAY:
        raise UserError(
            f"`fps` must be above {100 / MAX_GIF_DELAY:.5f} for .gif, got {float(fps):g}; give more, or write .mp4"
        )
