"""The scorer `technical`: faults of the picture, measured without any weights.

It judges sharpness, light, contrast and noise, not taste. Five measures for each frame, each mapped to 0 (poor) to 1
(nothing wrong) between two limits; the clip's value is the weakest of them, by the mean over its frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from ea_data.options import Options
from ea_data.protocols import FrameRequest, Frames, Score

#: measure -> (reads as 0, reads as 1); colourfulness has no ramp: black and white is no fault
RAMPS: dict[str, tuple[float, float]] = {
    "sharpness": (0.12, 0.42),
    "exposure": (0.05, 0.35),
    "contrast": (0.01, 0.05),
    "noise": (8.0, 3.0),
}
_BLUR_WIDTH = 9  # of the re-blurring of Crete et al., in pixels
_EDGE = 0.5  # levels between neighbouring pixels, above which there is an edge
_EDGES = 1e-3  # share of the pixels; a picture with fewer edges has none that could be sharp
_BLOCK = 16  # pixels of a block in which noise is measured


class TechnicalOptions(Options):
    """frames: how many for each clip, spread evenly. max_side: the size at which it is judged; detail that scaling down
    for training would lose does not count."""

    frames: int = Field(4, ge=1)
    max_side: int = Field(512, ge=64)


def measure(pixels: np.ndarray) -> dict[str, float]:
    """The five measures of one frame, uint8 (H, W, 3).

    sharpness: 1 - the blur effect (Crete et al. 2007): how much of the change between neighbouring pixels goes when
        the picture is blurred once more; the worse of the two directions. 0 to 1, free of contrast and brightness.
        Pixels are averaged 3 x 3 before: the steps of a smooth gradient and of its compression look sharp otherwise.
    exposure: 1 - 2 |mean luma - 0.5|, 0 (all black or white) to 1 (mid gray on average).
    contrast: standard deviation of luma (root mean square contrast), 0 to 0.5.
    colourfulness: Hasler and Süsstrunk 2003 over R-G and (R+G)/2-B, in levels of 255; 0 is gray, 100 is vivid.
    noise: Immerkær 1996, the standard deviation of noise in levels of 255, in the calmest fifth of the picture: fine
        texture would count as noise elsewhere.
    """
    import cv2

    frame = pixels.astype(np.float32)
    red, green, blue = frame[..., 0], frame[..., 1], frame[..., 2]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # H W, 0..255
    rg, yb = red - green, 0.5 * (red + green) - blue
    spread = float(np.hypot(rg.std(), yb.std()))
    level = float(np.hypot(rg.mean(), yb.mean()))
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    rough = np.abs(cv2.filter2D(luma, cv2.CV_32F, kernel))  # H W
    blocks = (max(1, frame.shape[1] // _BLOCK), max(1, frame.shape[0] // _BLOCK))
    rough = cv2.resize(rough, blocks, interpolation=cv2.INTER_AREA)  # the mean of each block
    calm = cv2.blur(luma, (3, 3))
    found = {
        "sharpness": 1 - max(_blur(calm, 0), _blur(calm, 1)),
        "exposure": 1 - 2 * abs(float(luma.mean()) / 255 - 0.5),
        "contrast": float(luma.std()) / 255,
        "colourfulness": spread + 0.3 * level,
        "noise": float(np.sqrt(np.pi / 2) / 6 * np.quantile(rough, 0.2)),
    }
    return {name: round(max(0.0, value), 6) for name, value in found.items()}


def _blur(luma: np.ndarray, axis: int) -> float:
    """The blur effect along one axis: 0 (sharp) to 1 (nothing is left to blur)."""
    import cv2

    size = (1, _BLUR_WIDTH) if axis == 0 else (_BLUR_WIDTH, 1)
    change, changed = (np.abs(np.diff(image, axis=axis)) for image in (luma, cv2.blur(luma, size)))
    is_edge = change > _EDGE
    if not is_edge.size or is_edge.mean() < _EDGES:
        return 1.0
    total = float(change[is_edge].sum())
    return 1 - float(np.maximum(0, change - changed)[is_edge].sum()) / total


def rate(measures: dict[str, float]) -> dict[str, float]:
    """The measures that have a ramp, each as 0 (poor) to 1."""
    return {
        name: round(min(1.0, max(0.0, (measures[name] - poor) / (good - poor))), 6)
        for name, (poor, good) in RAMPS.items()
    }


class TechnicalScorer:
    """value: the weakest rating, 0 to 1, of the measures' means over the frames. values: the same for each frame.

    detail: the five means, and `weakest`, the name of the measure that gave the value.
    """

    version = "1"
    cost = 60.0

    def __init__(self, options: TechnicalOptions) -> None:
        self.options = options
        self.needs = FrameRequest("even", options.frames, options.max_side)

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """frames.pixels: uint8 (N, H, W, 3)."""
        found = [measure(frame) for frame in frames.pixels]
        means = {name: round(float(np.mean([one[name] for one in found])), 6) for name in found[0]}
        ratings = rate(means)
        weakest = min(ratings, key=ratings.__getitem__)
        values = tuple(min(rate(one).values()) for one in found)
        return Score(ratings[weakest], values, {**means, "weakest": weakest})
