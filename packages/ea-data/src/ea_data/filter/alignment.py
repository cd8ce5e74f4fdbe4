"""Two signatures compared: the run of frames that they share, and how alike they are in it.

One clip is laid over the other at every offset. At the best ones, brightness, contrast and a slight crop are fitted
(least squares over the overlap, with the first derivatives of the frames, as in Lucas and Kanade 1981). Then these are
compared: the mean frame, its gradient, its colours, and above all what changes over time. Two people in one room have
their room in common, and not what changes.

Shape legend: T frames at RATE a second, F = GRID * GRID fields of a frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ea_data.media.signature import GRID, RATE, Signature

#: Frames with a lower correlation do not belong to a run.
_LEAST_FRAME = 0.7
#: Fields that something laid over one of the clips may cover, such as a logo.
_COVERED = GRID * GRID // 10
#: Films are run at other speeds for television.
_SPEEDS = (1.0, 25 / 24, 24 / 25)
#: Largest shift of an edge by the fit, in fields: a crop of 5%.
_MOST_SHIFT = 0.3
#: Offsets with lower correlations, of frames and of what changes in them, are not looked at closely.
_LEAST_FRAMES, _LEAST_CHANGE = 0.6, 0.4
_STILL = 0.5  # levels: what changes less is noise
#: A fit from which on no better one is looked for; correlations of what changes between which another speed is tried.
_PERFECT, _DRIFTS, _SURE = 1.99, 0.5, 0.97
_FLAT = 1.0  # levels: the standard deviation of a frame in which there is nothing to see


@dataclass(frozen=True, slots=True)
class Likeness:
    """Two clips over the run that they share.

    start, end: of the run within the first clip, seconds. change, scene, gradient: correlations, -1 to 1, of what
    changes, of the mean frame without covered fields, and of its gradient; whole: the lower of the last two with all
    fields. moved: standard deviation over time, levels, of the clip that moves less and of the other; spread: of the
    mean frame that shows less. hue: cosine between the mean colours; tint: root mean square of their difference,
    levels; colour: of the paler one.
    """

    start: float
    end: float
    change: float
    scene: float
    gradient: float
    whole: float
    moved: tuple[float, float]
    spread: float
    hue: float
    tint: float
    colour: float

    @property
    def fit(self) -> float:
        """Agreement of the clips where they overlap, up to 2."""
        return self.change + self.scene


def compare(one: Signature, other: Signature, share: float) -> Likeness | None:
    """The best run that is at least `share` of the shorter clip; None without any.

    The other clip is also tried 4% slower and faster, if it looks like the first but drifts away from it.
    """
    found: list[Likeness] = []
    for speed in _SPEEDS:
        likeness = _Pair(one, other, share, speed).best()
        if likeness is not None:
            found.append(likeness)
        if not found or not _DRIFTS <= found[0].change < _SURE or found[0].moved[0] < 1:
            break
    return max(found, key=lambda of: of.fit, default=None)


class _Pair:
    """Two clips that are laid over each other. speed: of the second. Offsets count in frames of the first."""

    def __init__(self, one: Signature, other: Signature, share: float, speed: float) -> None:
        self.first, self.second = (
            of.luma.reshape(len(of.luma), -1).astype(np.float32) for of in (one, other)
        )
        if speed != 1:
            self.second = _at(self.second, np.arange(0, len(self.second) - 1, speed))
        self.colours, self.speed = (one.colour, other.colour), speed
        shorter = min(len(self.first), len(self.second))
        self.least = max(min(shorter, RATE), int(np.ceil(share * shorter)))

    def best(self) -> Likeness | None:
        """The likeness at the best offset, to an eighth of a frame."""
        tries: dict[float, Likeness | None] = {}

        def fit(offset: float) -> float:
            if offset not in tries:
                tries[offset] = self.look(offset)
            likeness = tries[offset]
            return -math.inf if likeness is None else likeness.fit

        for offset in map(float, self.coarse()):
            place, step = offset, 0.5
            while step >= 0.125 and fit(place) < _PERFECT:
                place = max((place, place - step, place + step), key=fit)
                step /= 2
        return max((likeness for likeness in tries.values() if likeness), key=lambda of: of.fit, default=None)

    def coarse(self) -> list[int]:
        """The two best offsets in whole frames; none if nothing is alike."""
        first, second = self.first, self.second
        offsets = np.arange(self.least - len(second), len(first) - self.least + 1)
        start = np.maximum(0, -offsets)
        count = np.minimum(len(second), len(first) - offsets) - start
        frames = _along_diagonals(_normal(first) @ _normal(second).T, offsets) / count
        if not (frames >= _LEAST_FRAMES).any():
            return []
        firsts, seconds = first - first.mean(0), second - second.mean(0)
        moving = _along_diagonals(firsts @ seconds.T, offsets)
        powers = []
        for of, begin in ((firsts, start + offsets), (seconds, start)):
            sums = np.concatenate([[0], np.cumsum((of**2).sum(1))])
            powers.append(sums[begin + count] - sums[begin])
        change = moving / np.sqrt(powers[0] * powers[1] + 1)
        is_still = np.minimum(*powers) < count * first.shape[1] * _STILL**2
        is_alike = (frames >= _LEAST_FRAMES) & ((change >= _LEAST_CHANGE) | is_still)
        ranked = np.lexsort((-offsets, -(frames + change)))
        return [int(offsets[place]) for place in ranked if is_alike[place]][:2]

    def look(self, offset: float) -> Likeness | None:
        """The likeness at an offset; None without a long enough run."""
        begin = max(0, math.ceil(-offset))
        end = min(len(self.second), math.floor(len(self.first) - 1 - offset) + 1)
        if end - begin < max(1, self.least - 1):
            return None
        shown, seen = _at(self.first, np.arange(begin, end) + offset), self.second[begin:end]
        fitted = _fitted(shown, seen)
        is_flat = (shown.std(1) < _FLAT) & (seen.std(1) < _FLAT)
        start, stop = _longest(((_normal(fitted) * _normal(seen)).sum(1) >= _LEAST_FRAME) | is_flat)
        if stop - start < max(1, self.least - 1):
            return None
        if stop - start < end - begin:
            shown, seen = shown[start:stop], seen[start:stop]
            fitted = _fitted(shown, seen)
        return self.measure(shown, fitted, seen, begin + start, offset)

    def measure(
        self, shown: np.ndarray, fitted: np.ndarray, seen: np.ndarray, start: int, offset: float
    ) -> Likeness:
        """shown, fitted: the first clip's frames of a run, as they are and as they fit `seen`, the second's, (T, F).
        start: the run's first frame in the second clip."""
        end = start + len(seen)
        mean, mean_seen = fitted.mean(0), seen.mean(0)
        low, high = sorted(float((of - of.mean(0)).std()) for of in (shown, seen))
        is_seen = np.ones(len(mean), bool)
        is_seen[np.argsort(np.abs(mean - mean_seen))[-_COVERED:]] = False
        gradient, gradient_seen = _gradient(mean), _gradient(mean_seen)
        sides = _sides(is_seen)
        colour = _mean_colour(self.colours[0], start + offset, end + offset)
        colour_seen = _mean_colour(self.colours[1], start * self.speed, end * self.speed)
        norm, norm_seen = (float(np.sqrt((of**2).mean())) for of in (colour, colour_seen))
        return Likeness(
            start=(start + offset) / RATE,
            end=(end + offset) / RATE,
            change=_correlation(fitted - mean, seen - mean_seen),
            scene=_correlation(mean[is_seen], mean_seen[is_seen]),
            gradient=_correlation(gradient[sides], gradient_seen[sides]),
            whole=min(_correlation(mean, mean_seen), _correlation(gradient, gradient_seen)),
            moved=(low, high),
            spread=float(min(shown.mean(0).std(), mean_seen.std())),
            hue=float((colour * colour_seen).mean() / max(norm * norm_seen, 1e-9)),
            tint=float(np.sqrt(((colour - colour_seen) ** 2).mean())),
            colour=min(norm, norm_seen),
        )


def _along_diagonals(pairs: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The sum of pairs (T, T') over each diagonal t - t' = offset."""
    rows, columns = pairs.shape
    places = np.arange(rows)[:, None] - np.arange(columns) + columns - 1
    sums = np.bincount(places.ravel(), pairs.ravel())
    return sums[offsets + columns - 1]


def _fitted(shown: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """`shown` with the brightness, contrast, shift and size (within limits) that are nearest to `seen`: (T, F)."""
    grid = shown.reshape(-1, GRID, GRID)
    down, across = np.gradient(grid, axis=1), np.gradient(grid, axis=2)
    x = np.linspace(-1, 1, GRID, dtype=np.float32)
    y = x[:, None]
    parts = np.stack([grid, across, down, across * x, down * y, np.ones_like(grid)], -1).reshape(-1, 6)
    factors = _solved(parts, seen.ravel())
    gain = factors[0] or 1.0
    warp = np.clip(factors[1:5] / gain, -_MOST_SHIFT, _MOST_SHIFT)
    if np.array_equal(warp, factors[1:5] / gain):
        return (parts @ factors).reshape(seen.shape)
    parts = np.stack([parts[:, :5] @ np.concatenate([[1.0], warp]).astype(np.float32), parts[:, 5]], 1)
    return (parts @ _solved(parts, seen.ravel())).reshape(seen.shape)


def _solved(parts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The factors of the columns of `parts` that come nearest to `wanted`; small for columns that say nothing."""
    squares = (parts.T @ parts).astype(np.float64)
    squares += np.diag(np.diag(squares) * 1e-6 + 1e-3)
    return np.linalg.solve(squares, parts.T @ wanted).astype(np.float32)


def _at(frames: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Frames at places from 0 to the last one, by linear interpolation."""
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, len(frames) - 1)
    share = (places - below).astype(np.float32)[:, None]
    return frames[below] * (1 - share) + frames[above] * share


def _longest(agrees: np.ndarray) -> tuple[int, int]:
    """First and end of the longest run of True; a single False within is read over."""
    filled = agrees.copy()
    filled[1:-1] |= agrees[:-2] & agrees[2:]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], filled, [False]])))
    runs = edges.reshape(-1, 2)
    if not len(runs):
        return 0, 0
    start, end = max(runs, key=lambda run: run[1] - run[0])
    return int(start), int(end)


def _normal(frames: np.ndarray) -> np.ndarray:
    """Frames (T, F) with mean 0 and length 1."""
    frames = frames - frames.mean(1, keepdims=True)
    return frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-6)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / max(np.sqrt((one**2).sum() * (other**2).sum()), 1e-6))


def _gradient(frame: np.ndarray) -> np.ndarray:
    """Differences between neighbouring fields, down and across."""
    grid = frame.reshape(GRID, GRID)
    return np.concatenate([np.diff(grid, axis=0).ravel(), np.diff(grid, axis=1).ravel()])


def _sides(is_seen: np.ndarray) -> np.ndarray:
    """The differences of _gradient of which both fields are seen."""
    grid = is_seen.reshape(GRID, GRID)
    return np.concatenate([(grid[1:] & grid[:-1]).ravel(), (grid[:, 1:] & grid[:, :-1]).ravel()])


def _mean_colour(colour: np.ndarray, start: float, end: float) -> np.ndarray:
    """The mean colour of the seconds of a run, in frames: (COLOURS * COLOURS * 2,)."""
    first = min(len(colour) - 1, round(start / RATE))
    return colour[first : max(first + 1, round(end / RATE))].astype(np.float32).mean(0).ravel()
