"""Tells what looks like a cut within one shot: flashes, strobes, changes of light.

Shape legend: N frames, H height, W width.
"""

from __future__ import annotations

import numpy as np

#: Frames before and after a change that are compared; a flash or a flicker of a strobe is shorter.
REACH = 8
#: Height and width of the frames that are compared; a step of a pan is less than one of their pixels.
GRID = (9, 16)
#: Two frames are of one shot if they differ by less than this share of the change between them ...
_SAME = 0.4
#: ... or if one correlates so much with the other, moved by some pixels.
_CORRELATED = 0.8


def is_flash(before: np.ndarray, after: np.ndarray) -> bool:
    """True if a frame before a change is like one after it. uint8 (N, *GRID, 3): neighbours of the change, in order of
    time; up to REACH frames count."""
    parts = (before[-REACH:], after[:REACH])
    before, after = (part.reshape(len(part), -1).astype(np.float32) for part in parts)
    differences = np.abs(before[:, None] - after[None]).mean(-1)  # N N
    return bool(differences.min() < _SAME * differences[-1, 0])


def is_other_light(before: np.ndarray, after: np.ndarray) -> bool:
    """True if two frames, uint8 (H, W, 3), show the same shapes in another light, up to a sixth of a side apart.

    The outermost sixth does not count: bars above and below are alike in all shots.
    """
    import cv2

    height, width = before.shape[:2]
    inner = before[height // 6 : height - height // 6, width // 6 : width - width // 6]
    if not inner.std() or not after.std():
        return False
    found = cv2.matchTemplate(after, np.ascontiguousarray(inner), cv2.TM_CCOEFF_NORMED)
    return bool(np.nan_to_num(found).max() >= _CORRELATED)


def to_grid(frames: np.ndarray) -> np.ndarray:
    """Frames of 27x48 pixels, uint8 (N, 27, 48, 3), averaged to uint8 (N, *GRID, 3)."""
    rows, columns = GRID
    return frames.reshape(len(frames), rows, 3, columns, 3, 3).mean((2, 4)).astype(np.uint8)
