"""Metrics of a video by itself, from its pixels. Each is a function of a clip; None for one frame, where time matters.

Levels are those of 8-bit sRGB, 0 to 255. A still video is frozen and repeats itself: whether it should move, only its
prompt says (`adherence`).
"""

from __future__ import annotations

import numpy as np

from ea_runtime.evaluation.clip import Clip
from ea_runtime.video import measures

#: levels: frames none of whose blocks differ by more are the same picture
_STILL = 1.0
#: so are those that a codec's noise sets apart: up to so many levels, and this share of what the steps around differ
_NOISE, _SHARE = 3.0, 0.2
#: pairs of frames on either side whose steps are the usual ones there
_AROUND = 3
#: steps below this are no motion; added to both, so that a ratio of two of them stays small
_LEAST_STEP = 0.1
#: octaves: a step of an eighth, or eight times as large, counts no less than a larger one
_MOST_OCTAVES = 3.0
#: equal parts of a video whose colours are compared
_PARTS = 8


def sharpness(clip: Clip) -> float:
    """Variance of the Laplacian of luma, after Pech-Pacheco et al. 2000, in squared levels: the mean of the frames.

    Noise is sharp, too, and so is a pattern: compare videos of the same prompts.
    """
    return float(np.mean([measures.sharpness(frame) for frame in clip.luma])) * 255**2


def flicker(clip: Clip) -> float | None:
    """Half the mean second difference, in time, of the luma of 4x4 cells, in levels: what goes up and comes down again.

    Brightness that grows evenly and shapes that pass through a cell change it little.
    """
    if len(clip.frames) < 3:
        return None
    levels = measures.grey(clip.cells) * 255
    return float(np.abs(np.diff(levels, 2, axis=0)).mean()) / 2


def stutter(clip: Clip) -> float | None:
    """The mean distance of each step between frames to the usual step around it, in octaves (2: a step four times as
    large, or a quarter). Pairs that stand still among others that do count as even.
    """
    means, _ = clip.steps
    if len(means) < 3:
        return None
    distances = np.abs(np.log2((means + _LEAST_STEP) / (_around(means) + _LEAST_STEP)))
    return float(np.minimum(distances, _MOST_OCTAVES).mean())


def repeated(clip: Clip) -> float | None:
    """Share of the frames after the first that equal the one before, up to a codec's noise: 0 to 1."""
    is_still = _is_still(clip)
    return float(is_still.mean()) if len(is_still) else None


def frozen(clip: Clip) -> float | None:
    """The longest run of such repeated frames, as a share of the frames after the first: 0 to 1."""
    is_still = _is_still(clip)
    longest = run = 0
    for found in is_still:
        run = run + 1 if found else 0
        longest = max(longest, run)
    return longest / len(is_still) if len(is_still) else None


def colour_drift(clip: Clip) -> float | None:
    """CIE76 distance of the colours of 4x4 cells from those of the first eighth, at the eighth that is farthest.

    The lower quartile of the cells, so that shapes that move through most of them do not count.
    """
    if len(clip.frames) < 2:
        return None
    parts = np.array_split(clip.cells, min(_PARTS, len(clip.frames)))
    colours = measures.lab(np.stack([part.mean(0) for part in parts]))  # parts h w 3
    distances = np.linalg.norm(colours[1:] - colours[0], axis=-1)
    return float(np.quantile(distances.reshape(len(distances), -1), 0.25, axis=1).max())


def _is_still(clip: Clip) -> np.ndarray:
    """(T - 1,): True for a frame after the first that shows what the one before shows."""
    _, most = clip.steps
    if len(most) < 2:
        return most <= _STILL
    return (most <= _STILL) | (most <= np.minimum(_NOISE, _SHARE * _around(most)))


def _around(steps: np.ndarray) -> np.ndarray:
    """The median of the three steps before and the three after each of two or more."""
    return np.array(
        [
            np.median(np.concatenate([steps[max(i - _AROUND, 0) : i], steps[i + 1 : i + 1 + _AROUND]]))
            for i in range(len(steps))
        ]
    )
