"""Measures of joins, on frames whose changes are known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ea_runtime.video.measures import JoinMeter, block_flow, delta_e, grey, lab, sharpness


def texture(shift: float = 0.0, seed: int = 0) -> np.ndarray:
    """A smooth texture (48, 64, 3) uint8, moved to the right."""
    y, x = np.mgrid[0:48, 0:64].astype(float)
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    level = np.sin((x - shift) / 3 + phases[0]) + np.sin((x - shift) / 7 + y / 5 + phases[1])
    return np.repeat((128 + 40 * level)[..., None], 3, 2).round().astype(np.uint8)


def measured(frames: list[np.ndarray], joins: list[int]) -> list[dict[str, float]]:
    meter = JoinMeter(joins, len(frames))
    for frame in frames:
        meter.add(frame)
    return meter.measured()


def test_colours() -> None:
    assert lab(np.array([255, 255, 255])) == pytest.approx([100, 0, 0], abs=0.01)
    assert lab(np.array([255, 0, 0])) == pytest.approx([53.24, 80.09, 67.20], abs=0.05)
    assert delta_e(np.array([119.0] * 3), np.array([119.0] * 3)) == 0


@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.5, 1.0])
def test_flow_of_a_moving_texture(shift: float) -> None:
    flow = block_flow(grey(texture()), grey(texture(shift)))
    assert np.median(flow[0]) == pytest.approx(shift, abs=0.15)
    assert np.median(flow[1]) == pytest.approx(0, abs=0.15)
    flat = np.full((48, 64), 0.5, np.float32)
    assert np.abs(block_flow(flat, flat)).max() == 0


def test_sharpness_falls_where_a_frame_is_blurred() -> None:
    soft = np.asarray(Image.fromarray(texture()).filter(ImageFilter.GaussianBlur(2)))
    assert sharpness(grey(soft)) < 0.8 * sharpness(grey(texture()))


def test_a_join_that_is_none_and_joins_that_are_seen() -> None:
    moving = [texture(0.5 * n) for n in range(36)]
    smooth = measured(moving, [18])[0]
    assert smooth["frame"] == 18
    assert smooth["delta_e"] < 2
    assert smooth["sharpness"] == pytest.approx(1, abs=0.1)
    assert smooth["flow_jump"] < 0.1
    brighter = measured(
        [*moving[:18], *(np.clip(f.astype(int) + 20, 0, 255).astype(np.uint8) for f in moving[18:])], [18]
    )
    assert brighter[0]["delta_e"] > 5
    soft = [np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(2))) for f in moving[18:]]
    assert measured([*moving[:18], *soft], [18])[0]["sharpness"] < 0.8
    jump = measured([*moving[:18], *(texture(0.5 * n + 1.5) for n in range(18, 36))], [18])[0]
    assert jump["flow_jump"] > 5 * smooth["flow_jump"]
    assert jump["flow_jump"] > 0.5


def test_the_seam_of_a_loop() -> None:
    """Its period is 36 frames, so nothing jumps; cut short, it does."""
    x = np.arange(64)[None, :, None] * np.ones((48, 1, 3))
    loop = [(128 + 60 * np.sin(2 * np.pi * (x / 18 - n / 36))).round().astype(np.uint8) for n in range(36)]
    assert measured(loop, [0])[0]["flow_jump"] < 0.05
    assert measured(loop[:33], [0])[0]["flow_jump"] > 0.3


def test_frames_larger_than_the_flow_is_estimated_at() -> None:
    large = [np.kron(texture(0.5 * n), np.ones((4, 4, 1), np.uint8)) for n in range(12)]
    assert measured(large, [6])[0]["flow_jump"] < 0.5
    assert [one["frame"] for one in measured(large, [8, 0])] == [0, 8]
