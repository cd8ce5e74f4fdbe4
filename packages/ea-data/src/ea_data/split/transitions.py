"""From a network's probabilities to hard and gradual cuts.

Shape legend: N frames.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ea_data.split.gate import prominence, steps
from ea_data.split.same_shot import REACH, is_flash, is_other_light, to_grid
from ea_data.split.wipes import find_wipes

#: Where a single step stands out so many times, this probability is enough for a hard cut.
_CLEAR_STEP, _CLEAR = 3.0, 0.1
#: Least probability that a frame is in a transition, next to one that is in the middle of it.
_INSIDE = 0.2
#: Transitions up to this number of frames are hard cuts.
_HARD = 4
#: A gradual one is less often sure of its middle: this share of the threshold is enough, if its frames are in a
#: transition with this probability in the mean.
_GRADUAL_SHARE, _GRADUAL = 0.4, 0.4


class Evidence:
    """The probabilities for all frames of a video, collected in order.

    likely: that a frame is the middle of a transition. inside: that it is in one. step: the change from the frame
    before. kept: frames around transitions by their number. wipes: (first changed frame, first whole frame) of each.
    """

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._count = 0
        self.kept: dict[int, np.ndarray] = {}
        self.wipes: list[tuple[int, int]] = []

    def add_still(self, step: np.ndarray) -> None:
        """Frames where nothing changes: float32 (N,)."""
        self._append(np.zeros_like(step), np.zeros_like(step), step)

    def add(self, window: np.ndarray, side: int, likely: np.ndarray, inside: np.ndarray) -> None:
        """The frames of a window, uint8 (N, 27, 48, 3), but for `side` at both ends."""
        likely = likely.copy()
        grid = to_grid(window)
        for number in np.flatnonzero(likely >= _CLEAR):
            after = side + number + 1
            if is_flash(grid[after - REACH : after], grid[after : after + REACH]):
                likely[number] = 0.0
        for start, end in find_wipes(window, side, side + len(likely)):
            self.wipes.append((self._count + start - side, self._count + end - side))
        edges = np.pad(inside >= _INSIDE, 1)
        for number in np.flatnonzero(edges[1:] != edges[:-1]):
            for place in (number - 1, number):
                self.kept[self._count + int(place)] = window[side + place]
        self._append(likely, inside, steps(window)[side : side + len(likely)])

    def _append(self, likely: np.ndarray, inside: np.ndarray, step: np.ndarray) -> None:
        self._parts.append(np.stack([likely, inside, step]))
        self._count += len(step)

    def arrays(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """likely, inside and step of the first `count` frames: float32 (N,) each."""
        whole = np.concatenate(self._parts, 1)[:, :count] if self._parts else np.zeros((3, 0), np.float32)
        return whole[0], whole[1], whole[2]


def find_transitions(evidence: Evidence, count: int, threshold: float) -> list[tuple[int, int]]:
    """(first, after) of each transition of a video of `count` frames, in order.

    A hard cut: both are the new shot's first frame. A gradual one: its first changed frame, and the new shot's first
    whole one.
    """
    likely, inside, step = evidence.arrays(count)
    # the network marks the last frame of the old shot
    is_clear = np.append(prominence(step)[1:] >= _CLEAR_STEP, False) if count else np.zeros(0, bool)
    is_middle = (likely >= threshold) | (is_clear & (likely >= _CLEAR))
    is_near = (likely >= _GRADUAL_SHARE * threshold) | is_middle
    found: list[tuple[int, int]] = []
    for first, after in _stretches((inside >= _INSIDE) | is_middle):
        if after - first <= _HARD:
            if is_middle[first:after].any():
                clear = first + np.flatnonzero(is_clear[first:after]) + 1
                place = first + 1 + int(np.argmax(step[first + 1 : after + 1])) if after < count else count
                found.append((int(clear[0]), int(clear[-1])) if len(clear) > 1 else (place, place))
            continue
        is_sure = is_near[first:after].any() and inside[first:after].mean() >= _GRADUAL
        if (is_sure or is_middle[first:after].any()) and not _is_other_light(evidence, first, after):
            found.append((first, after))
    for start, end in evidence.wipes:
        if not any(start <= after + _HARD and first - _HARD <= end for first, after in found):
            found.append((start, end))
    return [(first, after) for first, after in sorted(found) if after > 0 and first < count]


def _is_other_light(evidence: Evidence, first: int, after: int) -> bool:
    before, behind = evidence.kept.get(first - 1), evidence.kept.get(after)
    return before is not None and behind is not None and is_other_light(before, behind)


def _stretches(flags: np.ndarray) -> list[tuple[int, int]]:
    """(first, after) of each run of True."""
    edges = np.flatnonzero(np.diff(np.pad(flags.astype(np.int8), 1)))
    return [(int(first), int(after)) for first, after in pairwise(edges)][::2]
