"""The inside of outlined shapes: drawn shapes are convex, so their stroke encloses their convex hull.

Shape legend: T frames, H height, W width.
"""

from __future__ import annotations

import numpy as np

#: the part of a shape around its centre, in radii, that distinguishes filled from outlined
CORE = 0.45
#: a pixel is inside if it is this far (pixels) within the polygon through the outermost solid pixels
_WITHIN = 0.75


def fill_hulls(mask: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """`mask` (T, H, W) in 0..1 with everything inside the hull of each frame's `solid` pixels set to 1.

    Pixels at the hull's edge keep their coverage, so areas stay exact to a part of a pixel.
    """
    filled = mask.copy()
    for frame, pixels in enumerate(solid):
        filled[frame][_inside(_hull(pixels), *pixels.shape)] = 1.0
    return filled


def core_fill(mask: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """Mean coverage (T,) of the pixels near the middle of each frame's hull: about 1 filled, about 0 outlined.

    Near: within CORE of the hull's mean radius around its centre of mass. NaN where nothing is solid.
    """
    height, width = mask.shape[1:]
    grid_y, grid_x = np.mgrid[:height, :width]
    found = np.full(len(mask), np.nan)
    filled = fill_hulls(np.where(solid, 1.0, 0.0), solid)
    for frame, inside in enumerate(filled > 0.5):
        area = inside.sum()
        if area:
            x, y = grid_x[inside].mean(), grid_y[inside].mean()
            near = (grid_x - x) ** 2 + (grid_y - y) ** 2 <= CORE**2 * area / np.pi
            found[frame] = float(np.clip(mask[frame][near], 0, 1).mean()) if near.any() else np.nan
    return found


def rim_cover(mask: np.ndarray, solid: np.ndarray) -> float:
    """Mean coverage of the band of 2 pixels inside each hull's edge: near 1 for a drawn stroke, half for noise."""
    covers = []
    for frame, pixels in enumerate(solid):
        hull = _hull(pixels)
        if pixels.sum() >= 3:
            band = _inside(hull, *pixels.shape, within=0.0) & ~_inside(hull, *pixels.shape, within=2.0)
            covers.append(np.clip(mask[frame][band], 0, 1).mean())
    return float(np.mean(covers)) if covers else 0.0


def _hull(pixels: np.ndarray) -> np.ndarray:
    """Corners (N, 2), as x and y, of the convex hull of true pixels (H, W), counterclockwise in x right, y up."""
    import cv2

    points = np.argwhere(pixels)[:, ::-1].astype(np.int32)
    return cv2.convexHull(points)[:, 0] if len(points) else points


def _inside(corners: np.ndarray, height: int, width: int, within: float = _WITHIN) -> np.ndarray:
    """Pixels (H, W) that are this far within the polygon."""
    inside = np.ones((height, width), bool)
    if len(corners) < 3:
        return np.zeros((height, width), bool)
    grid_y, grid_x = np.mgrid[:height, :width]
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        dx, dy = end - start
        distance = (dx * (grid_y - start[1]) - dy * (grid_x - start[0])) / np.hypot(dx, dy)
        inside &= distance >= within
    return inside
