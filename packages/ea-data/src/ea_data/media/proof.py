"""Decodes a written clip to prove that it holds the frames that went into it, each at its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ea_data.media.containers import BadFile, open_video
from ea_data.media.planes import luma
from ea_data.media.probe import file_errors
from ea_runtime.video.pictures import open_picture, to_rgb

#: Largest difference of brightness between a frame and the written one, mean of a grid, in levels of 0 to 255.
MOST_DIFFERENCE = 3.0
_GRID = 4


@dataclass(frozen=True, slots=True)
class Proof:
    """num_frames: decoded from the written file. luma_error: the largest difference of brightness of a frame from the
    one that was to be written, mean over a grid of 4 x 4 fields, in levels of 0 to 255."""

    num_frames: int
    luma_error: float


def mark(frame: Any) -> np.ndarray:
    """The brightness of a frame of FFmpeg in each field of a grid: float32 (4, 4), 0 to 255."""
    rows, bits = luma(frame)
    # every fourth pixel of every fourth row is plenty for a mean
    step = 4 if min(rows.shape) >= 16 * _GRID else 1
    pixels = rows[::step, ::step]
    height, width = (side // _GRID for side in pixels.shape)
    if not (height and width):
        return np.full((_GRID, _GRID), pixels.mean(), np.float32)
    fields = pixels[: height * _GRID, : width * _GRID].reshape(_GRID, height, _GRID, width)
    return fields.mean((1, 3), dtype=np.float32) / np.float32(1 << max(0, bits - 8))


def prove(path: Path, marks: Sequence[np.ndarray], fps: Fraction) -> Proof:
    """Decodes a written video against the marks of the frames that it is to hold, at a constant rate.

    Raises BadFile, one line, if a frame is missing, differs, or is shown at another time.
    """
    with file_errors(), path.open("rb") as file, open_video(file) as (container, stream):
        count, first, worst = 0, 0, 0.0
        for frame in container.decode(stream):
            if frame.pts is None or count >= len(marks):
                raise BadFile(f"it was written with more than its {len(marks)} frames")
            first = first if count else frame.pts
            seconds = float((frame.pts - first) * stream.time_base)
            if abs(seconds - count / fps) > 0.5 / fps:
                raise BadFile(
                    f"it was written with frame {count} at {seconds:g} s, not {float(count / fps):g} s"
                )
            worst = max(worst, float(np.abs(mark(frame) - marks[count]).mean()))
            if worst > MOST_DIFFERENCE:
                raise BadFile(f"it was written with another frame {count}: {worst:.1f} levels away")
            count += 1
    if count < len(marks):
        raise BadFile(f"it was written with {len(marks)} frames, of which {count} decode")
    return Proof(count, round(worst, 3))


def prove_picture(path: Path, size: tuple[int, int]) -> Proof:
    """Decodes a written picture. size: (width, height), upright. Raises BadFile."""
    with file_errors(), path.open("rb") as file, open_picture(file) as picture:
        found = to_rgb(picture).size
        if found != size:
            raise BadFile(f"it was written with {found[0]}x{found[1]} pixels, not {size[0]}x{size[1]}")
    return Proof(1, 0.0)
