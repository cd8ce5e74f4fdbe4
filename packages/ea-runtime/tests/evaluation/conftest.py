"""Small videos to judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ea_runtime.video.output import plan_output

SIDE, FRAMES = 64, 21


@pytest.fixture(scope="session")
def moving() -> Callable[..., np.ndarray]:
    """A textured disc that moves evenly over a ground with a little texture, of a seed: uint8 (T, 64, 64, 3)."""

    def draw(seed: int, num_frames: int = FRAMES) -> np.ndarray:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:SIDE, 0:SIDE].astype(float)
        ground = 70 + 12 * np.sin(x / 5 + rng.uniform(0, 6)) + 12 * np.sin(y / 7 + rng.uniform(0, 6))
        colour, start = rng.uniform(90, 220, 3), rng.uniform(18, 24, 2)
        way = rng.uniform(0.6, 0.9, 2)
        frames = []
        for number in range(num_frames):
            left, top = start + way * number
            mask = np.clip(11 - np.hypot(x - left, y - top), 0, 1)[..., None]
            disc = colour + 20 * np.sin((x - left) / 2)[..., None]
            frames.append(ground[..., None] * (1 - mask) + disc * mask)
        return np.clip(np.stack(frames), 0, 255).round().astype(np.uint8)

    return draw


@pytest.fixture(scope="session")
def write() -> Callable[[Path, np.ndarray], None]:
    """Writes a video of 12 frames a second."""

    def to_file(path: Path, frames: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with plan_output(path).writer(12) as add:
            for frame in frames:
                add(frame)

    return to_file
