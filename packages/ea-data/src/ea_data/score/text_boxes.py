"""Geometry of text boxes: the area that they cover together, their shape, and which of them are on one line.

A box is four corners (4, 2), x and y in pixels, in order around it; the first is the text's top left.
"""

from __future__ import annotations

import numpy as np

_LINES_PER_PIXEL = 4  # at which the union of boxes is measured


def union_area(boxes: np.ndarray, height: int, width: int) -> float:
    """The area that convex quadrilaterals cover together, over the frame's: 0 to 1.

    boxes: (N, 4, 2) corners as x, y in pixels, in order around the box. Overlaps count once, areas outside
    the frame do not. Exact along x; along y, on lines a quarter of a pixel apart.
    """
    if not len(boxes):
        return 0.0
    boxes = np.asarray(boxes, np.float64)
    num_lines = height * _LINES_PER_PIXEL
    y = (np.arange(num_lines) + 0.5)[:, None, None] / _LINES_PER_PIXEL  # S 1 1
    here, there = boxes, np.roll(boxes, -1, axis=1)  # N 4 2
    low, high = np.minimum(here[..., 1], there[..., 1]), np.maximum(here[..., 1], there[..., 1])  # N 4
    is_crossed = (low <= y) & (y < high)  # S N 4
    rise = np.where(there[..., 1] == here[..., 1], 1.0, there[..., 1] - here[..., 1])
    x = here[..., 0] + (y - here[..., 1]) / rise * (there[..., 0] - here[..., 0])  # S N 4
    left = np.where(is_crossed, x, np.inf).min(-1)  # S N
    right = np.where(is_crossed, x, -np.inf).max(-1)
    left, right = np.clip([left, right], 0, width)  # a box that is not crossed: left >= right
    order = np.argsort(left, axis=1)
    left, right = np.take_along_axis(left, order, 1), np.take_along_axis(right, order, 1)
    reached = np.maximum.accumulate(right, axis=1)  # how far the boxes before reach
    before = np.concatenate([np.zeros((num_lines, 1)), reached[:, :-1]], axis=1)
    covered = np.maximum(0, right - np.maximum(left, before)).sum()
    return float(covered / (num_lines * width))


def shape_of(box: np.ndarray) -> tuple[float, float]:
    """Length of a box along its text and its height, in pixels."""
    sides = np.linalg.norm(box - np.roll(box, -1, axis=0), axis=1)
    return float(max(sides[0], sides[2])), float(max(sides[1], sides[3]))


def bounds(box: np.ndarray) -> tuple[float, float, float, float]:
    """left, top, right, bottom of the upright rectangle around a box."""
    (left, top), (right, bottom) = box.min(0), box.max(0)
    return float(left), float(top), float(right), float(bottom)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Area that the rectangles around two boxes share, over the area of both together: 0 to 1."""
    a, b = bounds(one), bounds(other)
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = sum((one[2] - one[0]) * (one[3] - one[1]) for one in (a, b)) - across * down
    return across * down / both if both > 0 else 0.0


def lines(boxes: np.ndarray) -> list[list[int]]:
    """Numbers of the boxes of each line, from left to right: a line's boxes are less than their height apart.

    Detectors cut a line at a wide gap, or at each word.
    """
    found: list[list[int]] = []
    for number in np.argsort([bounds(box)[0] for box in boxes], kind="stable").tolist():
        for line in found:
            if _continues(boxes[line[-1]], boxes[number]):
                line.append(number)
                break
        else:
            found.append([number])
    return found


def _continues(left: np.ndarray, right: np.ndarray) -> bool:
    a, b = bounds(left), bounds(right)
    tall = min(a[3] - a[1], b[3] - b[1])
    return b[0] - a[2] <= tall and min(a[3], b[3]) - max(a[1], b[1]) >= tall / 2
