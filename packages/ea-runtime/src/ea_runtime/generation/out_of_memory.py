"""When memory runs out: say so in one line that names a smaller setting, and leave nothing behind."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ea_runtime.errors import UserError
from ea_runtime.machine.memory import free_memory, is_out_of_memory
from ea_runtime.models.geometry import Geometry


class OutOfMemoryError(UserError):
    """The device has too little memory for what was asked; the message names something smaller."""


@contextmanager
def explained(doing: str, geometry: Geometry, num_frames: int, height: int, width: int) -> Iterator[None]:
    """Turns running out of memory inside into an OutOfMemoryError; other errors pass."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_out_of_memory(error):
            raise
        # the traceback holds the failed run's tensors, and the new error would keep it
        traceback.clear_frames(error.__traceback__)
        free_memory()
        raise OutOfMemoryError(
            f"memory ran out while {doing} {num_frames} frames of {width}x{height}; "
            f"try {smaller(geometry, num_frames, height, width)}"
        ) from error


def smaller(geometry: Geometry, num_frames: int, height: int, width: int) -> str:
    """About half the work: "num_frames=72 or height=272, width=464"."""
    uses = []
    half = next((n for n in range(max(num_frames // 2, 1), 0, -1) if geometry.fits(n)), 1)
    if half < num_frames:
        uses.append(f"num_frames={half}")
    step = geometry.size_multiple
    low = [max(int(size * 0.71) // step, 1) * step for size in (height, width)]
    if low != [height, width]:
        uses.append(f"height={low[0]}, width={low[1]}")
    return " or ".join(uses) or "a device with more memory"
