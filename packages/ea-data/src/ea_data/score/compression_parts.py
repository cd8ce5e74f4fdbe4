"""Traces of compression and up-scaling in the pixels: a grid of steps, wide edges, lost detail.

All measures take luma at native size, uint8 (H, W): scaling down would destroy the grid.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_BLOCK = 8  # pixels of a DCT block
_STRUCTURE = 4.0  # mean of the lowest coefficients above which a block has structure, in levels
_ZERO = 1.0  # a coefficient that a codec's quantiser left out is smaller
_FEW = 16  # blocks or edges of which no share is taken
_EDGE = 24  # range within a window that is an edge, in levels
_WINDOW = 17  # pixels of that window
_SHARPEST = 0.1  # share of the edges that decides
_STEP_CAP = 8.0  # levels; larger steps are edges of things
_VISIBLE = 0.7  # mean step under which no grid is seen, in levels
_LARGEST_PERIOD = 24
_FEWEST_LINES = 12
_SPECTRUM_PEAKS = 8


def detail(luma: np.ndarray) -> float | None:
    """The share of middle and high DCT coefficients (u + v from 6 to 9) that are not zero, where a block has structure.

    0 to 1; None without structure. A coarse quantiser leaves strong edges and low frequencies, and little else.
    """
    height, width = (side // _BLOCK * _BLOCK for side in luma.shape)
    shape = (height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    blocks = luma[:height, :width].astype(np.float32).reshape(shape).transpose(0, 2, 1, 3)
    basis, low, high = _dct()
    size = np.abs(basis @ blocks @ basis.T).reshape(-1, _BLOCK * _BLOCK)
    has_structure = size[:, low].mean(1) > _STRUCTURE
    if has_structure.sum() < _FEW:
        return None
    return float((size[has_structure][:, high] >= _ZERO).mean())


@lru_cache(maxsize=1)
def _dct() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The orthonormal DCT-II, and which of its 64 products are of low and of middle and high frequency."""
    wave, place = np.arange(_BLOCK)[:, None], np.arange(_BLOCK)[None]
    basis = np.sqrt(2 / _BLOCK) * np.cos(np.pi * (2 * place + 1) * wave / (2 * _BLOCK))
    basis[0] /= np.sqrt(2)
    order = (wave + place).reshape(-1)
    return basis.astype(np.float32), (order > 0) & (order <= 3), (order >= 6) & (order <= 9)


def contrast(luma: np.ndarray) -> float:
    """log2 of the mean detail that a quarter and an eighth of the size show, in levels; it outlives compression."""
    import cv2

    kernel = np.array([1, 2, 1], np.float32) / 4
    small = luma.astype(np.float32)
    found = []
    for halvings in range(4):
        smooth = cv2.sepFilter2D(small, cv2.CV_32F, kernel, kernel)
        if halvings >= 2:
            found.append(float(np.log2(np.abs(small - smooth).mean() + 0.05)))
        small = smooth[::2, ::2]
    return sum(found) / len(found)


def edge_width(luma: np.ndarray) -> float | None:
    """The width of the sharpest tenth of the edges, in pixels: range within a window over the largest step in it.

    1 is a step from one pixel to the next; enlarging N times gives about N, up to 5. None without edges.
    """
    import cv2

    sharp = []
    for rows in (luma, np.ascontiguousarray(luma.T)):
        if rows.shape[1] <= _WINDOW:
            continue
        window = np.ones((1, _WINDOW), np.uint8)
        spread = cv2.dilate(rows, window) - cv2.erode(rows, window)  # H W
        step = cv2.dilate(cv2.absdiff(rows[:, 1:], rows[:, :-1]), window[:, 1:])  # H W-1
        spread = spread[_BLOCK // 2 :: _BLOCK, _WINDOW // 2 :: _BLOCK]
        step = step[_BLOCK // 2 :: _BLOCK, _WINDOW // 2 :: _BLOCK]
        spread = spread[:, : step.shape[1]]
        is_edge = spread > _EDGE
        sharp.append(step[is_edge] / spread[is_edge])
    ratios = np.concatenate(sharp) if sharp else np.zeros(0)
    if len(ratios) < _FEW:
        return None
    return 1 / max(1 / _WINDOW, float(np.quantile(ratios, 1 - _SHARPEST)))


def steps(luma: np.ndarray, axis: int) -> np.ndarray:
    """The mean size of steps that stand alone, between each two neighbours along an axis: float64 (its size - 1,).

    A step stands alone as far as it exceeds those before and after it: no texture, no soft edge, no noise.
    """
    lines = luma.astype(np.int16) if axis == 1 else np.ascontiguousarray(luma.T).astype(np.int16)
    change = np.abs(np.diff(lines, axis=1))
    found = np.zeros(change.shape[1])
    if len(found) > 2:
        alone = change[:, 1:-1] - np.maximum(change[:, :-2], change[:, 2:])
        found[1:-1] = np.clip(alone, 0, _STEP_CAP).mean(0)
    return found


def grid(profile: np.ndarray, places: np.ndarray, size: int) -> float:
    """The steps on the lines of the best grid over those elsewhere, after Wang et al. 2002: 1 is no grid.

    profile: `steps` of one axis, the mean over frames (a thing that moves leaves no line), at these places of a frame
    of `size` pixels. Periods are 4 to 24 pixels with any offset, and those that divide the frame evenly, as scaling
    leaves them. Steps that nobody sees count less.
    """
    longest = min(_LARGEST_PERIOD, len(profile) // _FEWEST_LINES)
    best = 1.0
    for period in range(4, longest + 1):
        phases = places % period
        means = np.bincount(phases, profile, period)  # the candidate; `_ratio` then takes the median
        best = max(best, _ratio(profile, phases == means.argmax()))
    for count in _even_divisions(profile, places, size, longest):
        period = size / count
        for offset in (-1.0, -0.5, 0.0, 0.5):
            lines = np.floor(np.arange(1, count) * period + offset).astype(int)
            best = max(best, _ratio(profile, np.isin(places, lines)))
    return best


def _even_divisions(profile: np.ndarray, places: np.ndarray, size: int, longest: int) -> np.ndarray:
    """The numbers of blocks across the frame that its spectrum suggests, most likely first."""
    if longest < 4:
        return np.zeros(0, int)
    counts = np.arange(-(-size // longest), size // 4 + 1)
    whole = np.zeros(size)
    whole[places] = profile - profile.mean()
    spectrum = np.abs(np.fft.fft(whole))
    strength = spectrum[counts] + spectrum[2 * counts % size]
    return counts[np.argsort(-strength, kind="stable")[:_SPECTRUM_PEAKS]]


def _ratio(profile: np.ndarray, is_line: np.ndarray) -> float:
    lines, others = profile[is_line], profile[~is_line]
    if not len(lines) or not len(others):
        return 1.0
    return (float(np.median(lines)) + _VISIBLE) / (float(others.mean()) + _VISIBLE)
