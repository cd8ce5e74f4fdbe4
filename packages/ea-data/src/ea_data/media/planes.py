"""The brightness of FFmpeg's frames as arrays."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

#: Formats whose first plane is brightness, one value for each pixel, at the low end of its word.
_LUMA_FIRST = re.compile(r"(yuvj?\d{3}p|yuva\d{3}p|gray|nv(12|16|21|24))(\d+le)?")


def luma(frame: Any) -> tuple[np.ndarray, int]:
    """(uint8 or uint16 (H, W), bits): a frame's brightness as it is stored; that of RGB in 8 bits.

    A view of the frame where it can be; do not write to it.
    """
    if not _LUMA_FIRST.fullmatch(frame.format.name):
        frame = frame.reformat(format="gray")
    plane, bits = frame.planes[0], frame.format.components[0].bits
    kind = np.dtype(np.uint8 if bits <= 8 else np.uint16)
    rows = np.frombuffer(plane, kind).reshape(plane.height, plane.line_size // kind.itemsize)
    return rows[:, : plane.width], bits
