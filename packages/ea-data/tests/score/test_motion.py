"""`dis` reads the speed of drawn pans; `farneback` is OpenCV's own call with V2's parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ea_data.draw.raw import RawScene, render_scene
from ea_data.options import NoOptions
from ea_data.protocols import Frames
from ea_data.score.motion import DisOptions, DisScorer, FarnebackScorer

FPS = 24


def pan(speed: float, height: int = 270, width: int = 480, way: str = "left", every: int = 6) -> Frames:
    """Gray frames of a pan of `speed` diagonals a second, each `every`-th of 24 a second."""
    import cv2

    scene = RawScene((1, 2, 3), 4 * every + 1, speed, way, 5, "scenes")
    frames = list(render_scene(scene, height, width, FPS))[::every]
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    return Frames(gray, np.arange(len(gray)) * every / FPS)


@pytest.mark.parametrize("speed", [0.005, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("way", ["left", "down"])
def test_dis_reads_the_speed_of_a_pan(speed: float, way: str) -> None:
    score = DisScorer(DisOptions())(pan(speed, way=way), {})
    assert score.value == pytest.approx(speed, rel=0.06)
    assert len(score.values) == 4


def test_dis_does_not_depend_on_size_or_rate() -> None:
    scorer = DisScorer(DisOptions())
    small, large, seldom = pan(0.05, 180, 320), pan(0.05, 360, 640), pan(0.05, every=8)
    assert [scorer(one, {}).value for one in (small, large, seldom)] == pytest.approx([0.05] * 3, rel=0.05)


def test_what_stands_still_does_not_move() -> None:
    still = pan(0.0)
    assert DisScorer(DisOptions())(still, {}).value < 1e-4
    assert FarnebackScorer(NoOptions())(still, {}).value < 1e-4


def test_one_frame_does_not_move() -> None:
    one = Frames(pan(0.1).pixels[:1], np.zeros(1))
    assert DisScorer(DisOptions())(one, {}).value == 0
    assert FarnebackScorer(NoOptions())(one, {}).values == ()


def test_the_same_frames_give_the_same_score() -> None:
    frames = pan(0.05)
    assert DisScorer(DisOptions())(frames, {}) == DisScorer(DisOptions())(frames, {})


def test_farneback_is_opencv_s_call_with_v2_s_parameters() -> None:
    import cv2

    farneback: Any = cv2.calcOpticalFlowFarneback
    frames = pan(0.04, every=12)
    expected = []
    for before, after in zip(frames.pixels[:-1], frames.pixels[1:], strict=True):
        flow = farneback(
            before,
            after,
            None,
            pyr_scale=0.5,
            levels=3,
            winsize=15,
            iterations=3,
            poly_n=5,
            poly_sigma=1.2,
            flags=0,
        )
        magnitude, _ = cv2.cartToPolar(flow[..., 0], flow[..., 1])
        expected.append(float(np.mean(magnitude)))
    score = FarnebackScorer(NoOptions())(frames, {})
    assert score.values == pytest.approx(expected, abs=2e-5)
    assert score.value == pytest.approx(np.mean(expected), abs=2e-5)


def test_farneback_asks_for_frames_half_a_second_apart_at_native_size() -> None:
    needs = FarnebackScorer(NoOptions()).needs
    assert (needs.mode, needs.value, needs.max_side, needs.colour) == ("stride", 2, 0, "gray")


def test_farneback_underrates_what_dis_does_not() -> None:
    """The meaning of V2's thresholds: their scale is not linear."""
    frames = pan(0.1, every=12)
    true = 0.1 / 2 * math.hypot(270, 480)
    assert FarnebackScorer(NoOptions())(frames, {}).value < true / 2
    assert DisScorer(DisOptions())(frames, {}).value * math.hypot(270, 480) / 2 == pytest.approx(
        true, rel=0.05
    )
