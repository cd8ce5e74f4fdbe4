"""Metrics of two videos of one name, frame by frame: `psnr` and `ssim`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ea_runtime.errors import UserError
from ea_runtime.evaluation.clip import Clip

#: dB of frames that are equal, whose PSNR has no end
MOST_DB = 100.0
#: Wang et al. 2004: pixels and standard deviation of the window, and the constants for levels of 0..1
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(clip: Clip) -> float:
    """Peak signal-to-noise ratio of RGB levels in dB, mean of the frames; 100 for frames that are equal.

    Raises UserError if the two videos differ in size or length.
    """
    return float(np.mean([_decibels(one, other) for one, other in _frames(clip)]))


def ssim(clip: Clip) -> float:
    """Structural similarity of luma (Wang et al. 2004), mean of the frames: 1 if equal.

    Raises UserError if the two videos differ in size or length, or have fewer than 11 pixels a side.
    """
    reference = _reference(clip)
    if min(clip.frames.shape[1:3]) < _WINDOW:
        raise UserError(f"it needs {_WINDOW} pixels a side, got {_size(clip)}")
    return float(np.mean([_similarity(*pair) for pair in zip(clip.luma, reference.luma, strict=True)]))


def _reference(clip: Clip) -> Clip:
    reference = clip.reference
    if reference is None:
        raise UserError("there is no video of this name in the other folder")
    if clip.frames.shape != reference.frames.shape:
        raise UserError(f"it has {_size(clip)}, the other video {_size(reference)}")
    return reference


def _frames(clip: Clip) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return zip(clip.frames, _reference(clip).frames, strict=True)


def _size(clip: Clip) -> str:
    count, height, width = clip.frames.shape[:3]
    return f"{count} frames of {width}x{height}"


def _decibels(one: np.ndarray, other: np.ndarray) -> float:
    error = float(((one.astype(np.float32) - other) ** 2).mean(dtype=np.float64))
    return MOST_DB if error == 0 else min(MOST_DB, float(10 * np.log10(255**2 / error)))


def _similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Of two pictures (H, W) in 0..1; windows that reach over the edge do not count."""
    mean, mean_other = _smooth(one), _smooth(other)
    variance = _smooth(one * one) - mean * mean
    variance_other = _smooth(other * other) - mean_other * mean_other
    shared = _smooth(one * other) - mean * mean_other
    top = (2 * mean * mean_other + _C1) * (2 * shared + _C2)
    bottom = (mean * mean + mean_other * mean_other + _C1) * (variance + variance_other + _C2)
    return float((top / bottom).mean(dtype=np.float64))


def _smooth(levels: np.ndarray) -> np.ndarray:
    """Weighted means over a Gaussian window: (H, W) -> (H - 10, W - 10)."""
    places = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(places**2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).astype(np.float64)
    height, width = (side - _WINDOW + 1 for side in levels.shape)
    rows = sum(weight * levels[i : i + height] for i, weight in enumerate(weights))
    return sum(weight * rows[:, i : i + width] for i, weight in enumerate(weights))  # pyright: ignore
