from __future__ import annotations

import os

import numpy as np
import pytest

from ea_data.draw.check import ATTRIBUTES, UNKNOWN, check_clip, check_prompts, measure
from ea_data.draw.scene import COMBINATIONS, coverage, place, render, sample_scene

STRIDE = 5 if os.environ.get("EA_FULL") == "1" else 11


def _blur(frames: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur in space. frames: (T, H, W, 3)."""
    reach = np.arange(-5, 6)
    kernel = np.exp(-(reach**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).astype(np.float32)
    padded = np.pad(frames.astype(np.float32), ((0, 0), (5, 5), (5, 5), (0, 0)), mode="edge")
    rows = sum(weight * padded[:, k : k + frames.shape[1]] for k, weight in enumerate(kernel))
    return np.asarray(sum(weight * rows[:, :, k : k + frames.shape[2]] for k, weight in enumerate(kernel)))


def _damage(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noisy = _blur(frames, 1.2) + rng.normal(0, 12, frames.shape)
    return np.clip(noisy, 0, 255).round().astype(np.uint8)


def _rates(combinations, damage=None, **size) -> dict[str, float]:
    rng = np.random.default_rng(0)
    right = dict.fromkeys(ATTRIBUTES, 0)
    for combination in combinations:
        scene = place(combination, rng)
        frames = render(scene, **size)
        verdict = measure(frames if damage is None else damage(frames, rng))
        for name in ATTRIBUTES:
            is_picture = name == "motion" and len(frames) == 1
            right[name] += getattr(verdict, name) == (None if is_picture else getattr(scene, name))
    return {name: count / len(combinations) for name, count in right.items()}


def test_truth_is_read_right():
    # A stride prime to 756 = 6 * 3 * 2 * 7 * 3 goes through all values of every attribute.
    assert min(_rates(COMBINATIONS[::STRIDE]).values()) >= 0.995


def test_blurred_and_noisy_truth_is_read_right():
    assert min(_rates(COMBINATIONS[::STRIDE], _damage).values()) >= 0.98


def test_pictures_and_other_sizes_are_read_right():
    assert min(_rates(COMBINATIONS[::STRIDE], _damage, num_frames=1).values()) >= 0.98
    assert min(_rates(COMBINATIONS[::97], _damage, height=128, width=128, num_frames=36).values()) == 1
    assert min(_rates(COMBINATIONS[::55], _damage, height=64, width=112, num_frames=9).values()) == 1


def test_a_ghost_elsewhere_does_not_count():
    ghost = coverage("square", np.array([0.15]), np.array([0.85]), np.array([0.1]), 64, 64)[..., None] * 0.3
    rates = _rates(COMBINATIONS[::23], lambda frames, _: np.uint8(frames * (1 - ghost) + 200 * ghost))
    assert min(rates.values()) >= 0.95, rates


def test_an_empty_clip_shows_only_its_background():
    verdict = measure(np.full((18, 64, 64, 3), (16, 26, 84), np.uint8))
    assert verdict.background == "navy"
    assert {verdict.colour, verdict.shape, verdict.size, verdict.motion} == {UNKNOWN}


def test_garbage_is_not_taken_for_a_shape():
    verdict = measure(np.random.default_rng(0).integers(0, 256, (18, 64, 64, 3)).astype(np.uint8))
    assert (verdict.colour, verdict.shape, verdict.motion) == (UNKNOWN, UNKNOWN, UNKNOWN)


def test_frames_in_a_random_order_neither_move_nor_stand_still():
    scene = place(("red", "circle", "small", "right", "black"), np.random.default_rng(0))
    frames = render(scene)[np.random.default_rng(0).permutation(18)]
    assert measure(frames).motion == UNKNOWN


def test_a_reversed_clip_moves_the_other_way():
    other = {"left": "right", "up": "down", "grow": "shrink", "right": "left", "down": "up", "shrink": "grow"}
    for index in range(20):
        scene = sample_scene(2, index)
        assert measure(render(scene)[::-1]).motion == other.get(scene.motion, "still")


def test_a_background_of_none_of_the_colours_is_unknown():
    frames = np.full((2, 64, 64, 3), (200, 60, 20), np.uint8)
    assert measure(frames).background == UNKNOWN


def test_rates_count_only_what_was_asked():
    scene = place(("red", "circle", "small", "right", "black"), np.random.default_rng(0))
    frames = render(scene)
    report = check_prompts(
        [("a red circle moves right", frames), ("a large red square moves right", frames), ("hello", frames)]
    )
    assert report.counts == {
        "colour": (2, 2),
        "shape": (1, 2),
        "size": (0, 1),
        "motion": (2, 2),
        "background": (0, 0),
        "all": (1, 2),
    }
    assert report.rate("shape") == 0.5
    assert report.rate("background") is None
    assert report.to_dict()["rates"]["motion"] == {"rate": 1.0, "right": 2, "asked": 2}
    assert check_clip("a red circle moves right", frames[:1]).asked == {"colour": "red", "shape": "circle"}


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((2, 64, 64, 3), np.float32),
        np.zeros((0, 64, 64, 3), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
    ],
)
def test_what_is_no_clip_is_refused(frames):
    with pytest.raises(ValueError, match="`frames` must be"):
        measure(frames)
