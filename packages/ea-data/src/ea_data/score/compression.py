"""The scorer `compression`: blocking, mush and up-scaling, without a reference and without weights.

Apart from `technical`, which judges the picture at the size of training: what a codec did is seen at native size only,
and in the bits that the file spends. Clips are cut from the raw file, so its own bits and pixels are what counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import Field

from ea_data.options import Options
from ea_data.protocols import FrameRequest, Frames, Score
from ea_data.score import compression_parts as parts

#: measure -> (reads as 1 up to here, power by which the rating falls above it)
FALLS: dict[str, tuple[float, float]] = {"blocking": (1.15, 1.4), "edge_width": (2.0, 2.0)}
#: bits that read as 0 and as 1, and detail that reads as 1
BITS, DETAIL = (-8.0, -3.0), 0.4
#: weight of detail in mush; the rest is that of bits
_DETAIL_WEIGHT = 0.2
#: log2 of the bits that a codec needs for what H.264 shows with 1: measured, see docs/data.md
NEEDS: dict[str, float] = {
    "hevc": -0.6,
    "av1": -0.6,
    "libdav1d": -0.6,
    "libaom-av1": -0.6,
    "vp9": 0.0,
    "vp8": 0.8,
    "mpeg4": 1.9,
    "msmpeg4v3": 1.9,
    "wmv2": 1.9,
    "flv": 1.9,
    "h263": 1.9,
    "mpeg1video": 2.3,
    "mpeg2video": 2.3,
    "mjpeg": 4.2,
    "jpeg": 4.2,
    "mpo": 4.2,
    "webp": 3.2,
    "avif": 2.6,
}
#: frames of this many pixels, this many a second, need as many bits a pixel as those that the limits were measured on
_PIXELS, _RATE = 640 * 360, 24
#: bits grow with pixels and frames by the power of 3/4
_POWER = 0.25
_STILL = 0.35  # of log2 of the share of the picture that changes
_LEAST_CHANGE = 1 / 16
_CHANGED = 1  # level, of the mean of one field
_FIELDS = (16, 9)


class CompressionOptions(Options):
    """frames: how many for each clip, spread evenly. side: of the window of each that is looked at, in pixels; the
    windows of the frames are at different places."""

    frames: int = Field(4, ge=1)
    side: int = Field(640, ge=64)


def changed_share(pixels: np.ndarray) -> float:
    """The share of 16 x 9 fields whose mean changes from one frame to the next: uint8 (N, H, W) -> 0 to 1."""
    import cv2

    small = [cv2.resize(frame.astype(np.float32), _FIELDS, interpolation=cv2.INTER_AREA) for frame in pixels]
    if len(small) < 2:
        return 1.0
    return float(np.mean([np.abs(a - b) > _CHANGED for a, b in pairwise(small)]))


def spent_bits(record: dict[str, Any], contrast: float, changed: float) -> float:
    """log2 of the bits for each pixel and frame, next to what such a clip needs: 0 for plenty, -8 for mush.

    As H.264 would need them at 640x360 and 24 a second; a picture with half the contrast needs 0.7 times as many, and
    one that hardly changes fewer. record: `bits`, `width`, `height`, `num_frames`, `fps`, `codec`.
    """
    pixels = record["width"] * record["height"]
    if record["bits"] <= 0:
        raise ValueError("its bits are not known; run `ea data run` on the raw folder again")
    found = math.log2(record["bits"] / pixels / max(1, record["num_frames"])) - NEEDS.get(
        record["codec"], 0.0
    )
    found += _POWER * math.log2(pixels / _PIXELS)
    if record["fps"]:
        found += _POWER * math.log2(record["fps"] / _RATE)
    return found - 0.5 * contrast - _STILL * math.log2(max(changed, _LEAST_CHANGE))


def windows(pixels: np.ndarray, side: int) -> list[tuple[slice, slice]]:
    """One window for each frame of uint8 (N, H, W), at most side x side, together all over the picture."""
    height, width = pixels.shape[1:]
    found = []
    for number in range(len(pixels)):
        down, across = (number * 0.618 + 0.5) % 1, (number + 0.5) / len(pixels)
        top, left = (
            int(max(0, size - side) * at) // 16 * 16 for size, at in ((height, down), (width, across))
        )
        found.append((slice(top, top + side), slice(left, left + side)))
    return found


def grid_of(pixels: np.ndarray, places: Sequence[tuple[slice, slice]]) -> float:
    """Strength of a grid, see `parts.grid`: the weaker of the two axes. pixels: uint8 (N, H, W)."""
    ratios = []
    for axis in (0, 1):
        size = pixels.shape[1 + axis] - 1
        total, count = np.zeros(size), np.zeros(size)
        for frame, place in zip(pixels, places, strict=True):
            found = parts.steps(frame[place], axis)
            start = place[axis].start
            total[start : start + len(found)] += found
            count[start : start + len(found)] += 1
        ratios.append(parts.grid(total[count > 0] / count[count > 0], np.flatnonzero(count), size + 1))
    return min(ratios)


def rate(measures: dict[str, float]) -> dict[str, float]:
    """The ratings of blocking, edge_width and mush: 0 (spoilt) to 1 (clean)."""
    rated = {name: min(1.0, (best / measures[name]) ** power) for name, (best, power) in FALLS.items()}
    poor, good = BITS
    bits = min(1.0, max(0.0, (measures["bits"] - poor) / (good - poor)))
    detail = min(1.0, measures["detail"] / DETAIL)
    return {**rated, "mush": (1 - _DETAIL_WEIGHT) * bits + _DETAIL_WEIGHT * detail}


class CompressionScorer:
    """value: the weakest of three ratings, 0 (spoilt) to 1 (clean).

    detail: the measures `blocking` (steps on a grid over those elsewhere), `edge_width` (pixels), `bits` and `detail`;
    `mush`, the rating that the last two have together; `weakest`, the name of what gave the value.
    """

    version = "1"
    cost = 100.0

    def __init__(self, options: CompressionOptions) -> None:
        self.options = options
        self.needs = FrameRequest("even", options.frames, 0, "gray")

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """frames.pixels: uint8 (N, H, W), native size."""
        pixels = frames.pixels
        places = windows(pixels, self.options.side)
        shown = [np.ascontiguousarray(frame[place]) for frame, place in zip(pixels, places, strict=True)]
        contrast = float(np.mean([parts.contrast(one) for one in shown]))
        measures = {
            "blocking": grid_of(pixels, places),
            "edge_width": _mean(parts.edge_width, shown, 1.0),
            "bits": spent_bits(record, contrast, changed_share(pixels)),
            "detail": _mean(parts.detail, shown, 1.0),
        }
        measures = {name: round(value, 6) for name, value in measures.items()}
        ratings = {name: round(value, 6) for name, value in rate(measures).items()}
        weakest = min(ratings, key=ratings.__getitem__)
        return Score(ratings[weakest], (), {**measures, "mush": ratings["mush"], "weakest": weakest})


def _mean(
    measure: Callable[[np.ndarray], float | None], shown: Sequence[np.ndarray], default: float
) -> float:
    """The mean over the frames that have what is measured."""
    found = [value for value in map(measure, shown) if value is not None]
    return float(np.mean(found)) if found else default
