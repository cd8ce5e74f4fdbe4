"""The scorer `duplicates`: a perceptual hash of a clip, by which the filter `duplicate` finds duplicates.

The difference hash (dHash) of some frames: each is scaled to 9 x 8 gray pixels, and each of its 64 bits is 1 if a pixel
is brighter than its left neighbour. It survives scaling, compression and changes of brightness.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from ea_data.options import Options
from ea_data.protocols import FrameRequest, Frames, Score


class HashOptions(Options):
    """frames: how many for each clip, spread evenly; only clips with the same number can be compared."""

    frames: int = Field(4, ge=1, le=16)


def difference_hash(frame: np.ndarray) -> np.ndarray:
    """The bits of one gray frame, uint8 (H, W): (64,) bool."""
    import cv2

    small = cv2.resize(np.ascontiguousarray(frame), (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return (small[:, 1:] > small[:, :-1]).ravel()  # 8 x 8


class HashScorer:
    """detail: hash: one string, 16 hexadecimal digits for each frame. value: the share of bits that are 1 (near 0 or 1
    for a flat picture, whose hash says little)."""

    version = "1"
    cost = 2.0

    def __init__(self, options: HashOptions) -> None:
        self.options = options
        self.needs = FrameRequest("even", options.frames, 128, "gray")

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """frames.pixels: uint8 (N, H, W)."""
        pixels = frames.pixels
        if len(pixels) < self.options.frames:  # too few frames: the last one is repeated
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self.options.frames - len(pixels), 0)])
        bits = np.stack([difference_hash(frame) for frame in pixels])
        return Score(round(float(bits.mean()), 6), detail={"hash": np.packbits(bits).tobytes().hex()})
