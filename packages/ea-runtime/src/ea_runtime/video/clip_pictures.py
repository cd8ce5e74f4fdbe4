"""Pictures as CLIP models take them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ea_runtime.errors import UserError

#: CLIP's own normalisation, if its folder names none.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def prepare(frame: np.ndarray, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (3, size, size): shorter side to `size`, bicubic, centre cut, normalised."""
    from PIL import Image

    height, width = frame.shape[:2]
    scale = size / min(height, width)
    wide, high = max(size, int(width * scale)), max(size, int(height * scale))
    image = Image.fromarray(frame).resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255  # S S 3
    pixels = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def normalisation(folder: Path, who: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the three colours, in 0..1, of the CLIP model in a folder; CLIP's own if unnamed.

    who: what reads it, in errors. Raises UserError, one line.
    """
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return _MEAN, _STD
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        mean, std = tuple(config.get("image_mean", _MEAN)), tuple(config.get("image_std", _STD))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{who}: {str(file)!r} cannot be read: {error}") from error
    is_right = len(mean) == len(std) == 3 and all(isinstance(value, int | float) for value in mean + std)
    if not is_right or not all(std):
        raise UserError(f"{who}: image_mean and image_std in {str(file)!r} must be three numbers")
    return mean, std
