"""Wipes with a straight, upright or level edge: each column (or row) of the picture changes once, one after another.

Shape legend: N frames, H height, W width.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

#: Frames before and after that are searched for the edge.
_HALF = 14
#: The change of a column while the edge crosses it, as a multiple of its usual change, and the levels more.
_MULTIPLE, _LEVELS = 3.0, 3.0
#: Shares of columns that must change so, and of those that must change when the edge is there, within so many frames.
_CHANGED, _IN_TIME, _LATE = 0.85, 0.9, 1.5
#: Least frames from side to side.
_SHORTEST = 3.5
#: Frames after (and before) in which the old (new) picture must not be seen, or something has passed by; and the
#: share of the change that counts as seen.
_LONG, _RETURNED = 20, 0.6


def find_wipes(window: np.ndarray, first: int, last: int) -> list[tuple[int, int]]:
    """(first changed frame, first whole frame) of wipes whose middle is in frames first to last - 1 of a window.

    window: uint8 (N, H, W, 3), with 25 frames more on both sides.
    """
    steps = np.abs(np.diff(window.astype(np.int16), axis=0)).mean(3, dtype=np.float32)  # N-1 H W
    votes: Counter[tuple[int, int]] = Counter()
    for lines in (steps.mean(1), steps.mean(2)):  # N-1 W, N-1 H
        for middle in range(max(first, _HALF), min(last, len(window) - _HALF)):
            found = _edge(lines[middle - _HALF : middle + _HALF])
            if found:
                # step i is the change from frame i to frame i + 1
                votes[found[0] + middle - _HALF + 1, found[1] + middle - _HALF + 1] += 1
    wipes: list[tuple[int, int]] = []
    for (start, end), _ in votes.most_common():
        is_apart = all(end < other or start > behind for other, behind in wipes)
        if is_apart and first <= (start + end) / 2 < last and not _has_passed(window, start, end):
            wipes.append((start, end))
    return sorted(wipes)


def _edge(lines: np.ndarray) -> tuple[int, int] | None:
    """The steps at which an edge that crosses the lines, float32 (N, lines), reaches the first and the last of them."""
    times, most = lines.argmax(0), lines.max(0)
    is_changed = most >= _MULTIPLE * np.median(lines, 0) + _LEVELS
    if is_changed.mean() < _CHANGED:
        return None
    places = np.arange(len(times))
    slope, start = np.polyfit(places[is_changed], times[is_changed], 1)
    is_late = np.abs(times - (slope * places + start))[is_changed] > _LATE
    ends = sorted((start, slope * places[-1] + start))
    if is_late.mean() > 1 - _IN_TIME or ends[1] - ends[0] < _SHORTEST:
        return None
    if ends[0] < -0.5 or ends[1] > len(lines) - 0.5:
        return None
    return max(0, round(float(ends[0]))), round(float(ends[1]))


def _has_passed(window: np.ndarray, start: int, end: int) -> bool:
    """True if the picture from before is there again soon, or the one after was there shortly before."""
    frames = window.astype(np.int16)
    last, new = max(0, start - 1), min(end, len(window) - 1)

    def differ(one: int, other: int) -> float:
        return float(np.abs(frames[one] - frames[other]).mean())

    later = [differ(last, number) for number in range(new, min(len(window), new + _LONG))]
    earlier = [differ(number, new) for number in range(max(0, last - _LONG), last + 1)]
    return min(later + earlier) < _RETURNED * differ(last, new)
