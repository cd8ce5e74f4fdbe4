"""Small pictures of a video, for the page."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

#: frames shown of each video, and pixels of their longer side
FRAMES, SIDE = 4, 96


def strip(frames: np.ndarray) -> bytes:
    """Four frames from first to last, next to each other: JPEG of uint8 (T, H, W, 3)."""
    count = len(frames)
    shown = [frames[round(i * (count - 1) / max(FRAMES - 1, 1))] for i in range(min(FRAMES, count))]
    height, width = frames.shape[1:3]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    joined = Image.new("RGB", (size[0] * len(shown), size[1]))
    for number, frame in enumerate(shown):
        joined.paste(Image.fromarray(frame).resize(size, Image.Resampling.BOX), (number * size[0], 0))
    held = io.BytesIO()
    joined.save(held, "JPEG", quality=80)
    return held.getvalue()
