"""Strokes that are laid over a picture, on drawn bars: over one that moves, and one that stands still."""

from __future__ import annotations

import numpy as np
import pytest

from ea_data.score.text_looks import Strokes

HEIGHT, WIDTH, FRAMES = 180, 320, 12
PLACE = (0.1, 0.1, 0.6, 0.2)  # of the bars: left, top, right, bottom
ELSEWHERE = (0.1, 0.6, 0.6, 0.7)


def clip(speed: int, opacity: float, shown: range = range(FRAMES), cell: int = 8) -> np.ndarray:
    """Bars over squares of random grey, `speed` pixels a frame: uint8 (FRAMES, HEIGHT, WIDTH, 3)."""
    rng = np.random.default_rng(0)
    rows, columns = (HEIGHT + FRAMES * speed) // cell + 1, (WIDTH + FRAMES * speed) // cell + 1
    ground = np.kron(rng.uniform(40, 120, (rows, columns)), np.ones((cell, cell)))
    bars = np.where(np.arange(WIDTH) % 8 < 4, 250.0, 0.0)
    frames = []
    for number in range(FRAMES):
        frame = ground[number * speed :, number * speed :][:HEIGHT, :WIDTH].copy()
        if number in shown:
            frame[18:36, 32:192] += opacity * (bars[32:192] - frame[18:36, 32:192])
        frames.append(frame)
    return np.repeat(np.rint(np.stack(frames))[..., None], 3, -1).astype(np.uint8)


@pytest.mark.parametrize("opacity", [0.4, 1.0])
def test_a_faint_watermark_is_held_while_the_picture_moves(opacity: float) -> None:
    pixels = clip(5, opacity)
    strokes = Strokes(pixels)
    held = strokes.held(pixels)
    assert held is not None
    np.testing.assert_array_equal(held, np.rint(pixels.astype(np.float32).mean(0)))
    assert strokes.is_held(PLACE)
    assert not strokes.is_held(ELSEWHERE)


@pytest.mark.parametrize("pixels", [clip(0, 1.0), clip(5, 0.0)], ids=["still", "no bars"])
def test_nothing_is_held_in_a_still_or_without_bars(pixels: np.ndarray) -> None:
    assert Strokes(pixels).held(pixels) is None


@pytest.mark.parametrize(
    ("pixels", "place"),
    [
        (clip(5, 1.0), PLACE),
        (clip(0, 1.0, range(4, 8)), PLACE),
        (clip(0, 1.0, range(4, 8)), (0.0, 0.05, 0.7, 0.25)),
    ],
    ids=["moving", "comes and goes", "comes and goes in a larger box"],
)
def test_bars_are_laid_over(pixels: np.ndarray, place: tuple[float, float, float, float]) -> None:
    strokes = Strokes(pixels)
    assert strokes.is_laid_over(5, place)
    assert not strokes.is_laid_over(5, ELSEWHERE)
