"""A cheap detector of any change in a window of small frames: it tells where a costly one must look.

Two rules: a step from one frame to the next that stands out, and pictures of unlike colours before and after. Slow
pans, hand-held cameras and moving people seldom set it off. Measured in docs/data.md, "Splitters".

Shape legend: N frames of a window, H height, W width.
"""

from __future__ import annotations

import numpy as np

#: A step stands out from this level (of 255) on, if it is so many times the usual one around it.
_LEAST_STEP, _STANDS_OUT = 2.0, 2.5
#: Neighbours on both sides that say what is usual.
_AROUND = 4
#: Frames before and after that are compared for a gradual change.
_APART = 12
#: Least share of pixels whose colour (of 64) changes, with the least change of a field of the picture in levels ...
_COLOURS, _FIELDS = 0.15, 5.0
#: ... or the least change of a field as a share of the contrast, for dark and for pale pictures.
_CONTRASTS = 0.6
#: Rows and columns of fields.
_GRID = (3, 4)


def steps(window: np.ndarray) -> np.ndarray:
    """Mean difference of each frame from the one before, in levels of 255: float32 (N,), the first is 0.

    window: uint8 (N, H, W, 3).
    """
    moved = np.abs(np.diff(window.astype(np.int16), axis=0)).mean((1, 2, 3), dtype=np.float32)
    return np.concatenate([np.zeros(1, np.float32), moved])


def prominence(step: np.ndarray) -> np.ndarray:
    """Each step over the usual one around it: float32 (N,); small steps count as 1."""
    around = np.pad(step, _AROUND, mode="edge")
    shifts = [shift for shift in range(2 * _AROUND + 1) if shift != _AROUND]
    usual = np.median([around[shift : shift + len(step)] for shift in shifts], axis=0)
    return np.where(step >= _LEAST_STEP, (step + 1) / (usual + 1), 1.0).astype(np.float32)


def may_change(window: np.ndarray, first: int, last: int) -> bool:
    """True if anything changes at frames first to last - 1 of a window, uint8 (N, H, W, 3), which holds some frames
    more on both sides. H and W are multiples of 3 and 4."""
    if (prominence(steps(window))[first:last] >= _STANDS_OUT).any():
        return True
    before = window[max(0, first - _APART) : last - _APART]
    after = window[first + _APART : last + _APART]
    count = min(len(before), len(after))
    before, after = before[-count:], after[:count]
    fields = np.abs(_fields(before) - _fields(after)).mean((1, 2, 3))
    colours = np.abs(_colours(before) - _colours(after)).sum(1) / 2
    contrast = np.maximum(_contrast(before), _contrast(after))
    is_new = (colours >= _COLOURS) & (fields >= _FIELDS) | (fields >= _CONTRASTS * (contrast + 2))
    return bool(is_new.any())


def _fields(window: np.ndarray) -> np.ndarray:
    """Mean colours of the fields: float32 (N, *_GRID, 3)."""
    count, height, width, _ = window.shape
    rows, columns = _GRID
    fields = window.reshape(count, rows, height // rows, columns, width // columns, 3)
    return fields.mean((2, 4), dtype=np.float32)


def _colours(window: np.ndarray) -> np.ndarray:
    """Shares of 64 colours, four levels of each channel: float32 (N, 64)."""
    levels = (window >> 6).astype(np.uint8)
    colour = (levels[..., 0] << 4 | levels[..., 1] << 2 | levels[..., 2]).reshape(len(window), -1)
    return np.stack([np.bincount(one, minlength=64) for one in colour]).astype(np.float32) / colour.shape[1]


def _contrast(window: np.ndarray) -> np.ndarray:
    """Standard deviation over the picture, the mean of the channels: float32 (N,)."""
    return window.reshape(len(window), -1, 3).std(1, dtype=np.float32).mean(1)
