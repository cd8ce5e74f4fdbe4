"""Checks that a video shows the pictures that it was made from, and continues from there.

PSNR of the first and the last frame to the pictures given; the shape's way from frame to frame: jumps, and
turning back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

#: dB; a first frame below it is not the given picture
MIN_FIRST = 28.0
#: dB; a last latent frame also stands for frames in which the shape still moves
MIN_LAST = 26.0
#: share of the shorter side that a shape may move between two frames; drawn ones move 0.04
MAX_STEP = 0.12
#: share of the shorter side by which a shape may turn back between two frames
SLACK = 0.012
#: share of the shorter side that a shape moves, or grows by, if it moves at all
_LEAST_WAY = 0.03


@dataclass(frozen=True)
class KnownCheck:
    """The findings. first_psnr, last_psnr: dB to the given pictures, None if not given.

    largest_step: between two frames, as a share of the shorter side; one_way: None for a prompt without motion.
    """

    first_psnr: float | None
    last_psnr: float | None
    largest_step: float
    one_way: bool | None

    @property
    def right(self) -> dict[str, bool]:
        """Verdicts by name, of what applies."""
        found = {
            "first frame": None if self.first_psnr is None else self.first_psnr >= MIN_FIRST,
            "last frame": None if self.last_psnr is None else self.last_psnr >= MIN_LAST,
            "continues": self.largest_step <= MAX_STEP,
            "one way": self.one_way,
        }
        return {name: value for name, value in found.items() if value is not None}


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Of two pictures of uint8, in dB; 99 for equal ones."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def way(frames: np.ndarray) -> np.ndarray:
    """x, y of the shape's middle and the root of its area in every frame: (T, 3), as shares of the shorter side.

    frames: uint8 (T, H, W, 3), one shape on a plain background.
    """
    rim = np.median(frames[:, 0].reshape(-1, 3), axis=0)
    cover = np.linalg.norm(frames.astype(np.float32) - rim, axis=-1)
    # squared: a ghost or the grain of a codec weighs little
    cover = np.clip(cover / max(float(np.quantile(cover, 0.985)), 1.0), 0, 1) ** 2
    area = cover.sum((1, 2)) + 1e-6
    x = (cover.sum(1) * np.arange(frames.shape[2])).sum(1) / area
    y = (cover.sum(2) * np.arange(frames.shape[1])).sum(1) / area
    return np.stack([x, y, np.sqrt(area)], axis=1) / min(frames.shape[1:3])


def goes_one_way(track: np.ndarray, motion: str) -> bool:
    """True if the shape moves as `motion` says and never turns back by more than SLACK. track: as `way` gives it."""
    axis, sign = {
        "left": (0, -1),
        "right": (0, 1),
        "up": (1, -1),
        "down": (1, 1),
        "grow": (2, 1),
        "shrink": (2, -1),
    }[motion]
    values = sign * track[:, axis]
    return bool((np.diff(values) > -SLACK).all()) and float(values[-1] - values[0]) > _LEAST_WAY


def check_known(frames: np.ndarray, given: Mapping[str, Any], motion: str | None) -> KnownCheck:
    """Checks a video made from pictures.

    frames: uint8 (T, H, W, 3). given: "image" and "image_end", arrays (H, W, 3), or pictures of Pillow (RGB), which
    are scaled and cropped to the video's size as `ea generate` does by default. motion: the prompt's.
    """
    track = way(frames)
    steps = np.abs(np.diff(track[:, :2], axis=0)).max() if len(frames) > 1 else 0.0
    moving = None if motion == "still" or len(frames) == 1 else motion
    return KnownCheck(
        _psnr_to(frames[0], given.get("image")),
        _psnr_to(frames[-1], given.get("image_end")),
        float(steps),
        None if moving is None else goes_one_way(track, moving),
    )


def _psnr_to(frame: np.ndarray, picture: Any) -> float | None:
    if picture is None:
        return None
    if not isinstance(picture, np.ndarray):
        from ea_runtime.video.fitting import fitted

        assert isinstance(picture, Image.Image)
        picture = np.asarray(fitted(picture, frame.shape[1], frame.shape[0], "crop"))
    return psnr(frame, picture)
