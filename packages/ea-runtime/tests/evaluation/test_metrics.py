"""Bundled metrics on frames whose values are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ea_runtime.errors import UserError
from ea_runtime.evaluation.chosen import Chosen
from ea_runtime.evaluation.clip import Clip, read_clip, step
from ea_runtime.evaluation.metrics.pairs import psnr, ssim
from ea_runtime.evaluation.metrics.seam import Seam, SeamOptions
from ea_runtime.evaluation.metrics.single import colour_drift, flicker, frozen, repeated, sharpness, stutter
from ea_runtime.video.measures import delta_e


def of_levels(*levels: float, side: int = 32) -> Clip:
    """A clip of even grey frames."""
    return Clip("a", np.stack([np.full((side, side, 3), level, np.uint8) for level in levels]))


def test_flicker_is_the_distance_between_the_levels_of_every_other_frame() -> None:
    assert flicker(of_levels(*[100, 104] * 4)) == pytest.approx(4)
    assert flicker(of_levels(*range(100, 140, 4))) == pytest.approx(0, abs=1e-4)  # it grows evenly


def test_repeated_and_frozen_frames_are_counted() -> None:
    clip = of_levels(0, 20, 20, 20, 40, 60, 60, 80, 100, 120, 140)
    assert repeated(clip) == pytest.approx(3 / 10)
    assert frozen(clip) == pytest.approx(2 / 10)
    assert (repeated(of_levels(*range(0, 200, 20))), frozen(of_levels(5, 5, 5))) == (0, 1)


def test_a_step_twice_as_large_is_an_octave() -> None:
    assert stutter(of_levels(*range(0, 100, 10))) == pytest.approx(0, abs=1e-9)
    dropped = stutter(of_levels(*[n for n in range(0, 110, 10) if n != 50]))
    assert dropped == pytest.approx(np.log2(20.1 / 10.1) / 9)


def test_colours_drift_by_their_distance_and_a_shape_does_not() -> None:
    warm = Clip("a", of_levels(*[100] * 16).frames.copy())
    warm.frames[8:, ..., 0] += 20
    assert colour_drift(warm) == pytest.approx(delta_e(np.full(3, 100), np.array([120, 100, 100])))
    shape = Clip("a", of_levels(*[100] * 16).frames.copy())
    for number in range(16):
        shape.frames[number, 8:24, number : number + 16] = (200, 0, 0)
    found = colour_drift(shape)
    assert found is not None
    assert found < 1


def test_the_seam_is_what_a_join_changes_more_than_the_frames_around() -> None:
    chunks = of_levels(*range(9), *range(20, 29))  # steps of 1, and of 12 at frame 9
    assert Seam(SeamOptions())(chunks) == pytest.approx(11)
    assert Seam(SeamOptions(chunk=8))(chunks) == 0
    assert Seam(SeamOptions(chunk=0))(chunks) is None
    windows = Clip("a", chunks.frames, record={"joins": [{"frame": 9}, {"frame": 5}]})
    assert Seam(SeamOptions(chunk=0))(windows) == pytest.approx(11 / 2)
    loop = Clip("a", of_levels(*range(40, 60)).frames, record={"joins": [{"frame": 0}]})
    assert Seam(SeamOptions(chunk=0))(loop) == pytest.approx(18)


def test_psnr_and_ssim_of_known_pairs() -> None:
    one = of_levels(100, 100)
    assert psnr(Clip("a", one.frames, reference=of_levels(110, 110))) == pytest.approx(
        10 * np.log10(255**2 / 100)
    )
    rng = np.random.default_rng(0)
    noise = Clip("a", rng.integers(0, 256, (2, 16, 16, 3), np.uint8))
    same = Clip("a", noise.frames, reference=Clip("b", noise.frames.copy()))
    assert (psnr(same), ssim(same)) == (100, 1)
    other = Clip("b", rng.integers(0, 256, (2, 16, 16, 3), np.uint8))
    assert ssim(Clip("a", noise.frames, reference=other)) < 0.2
    # two even pictures: only the term of the means is left (Wang et al. 2004, equation 6)
    pair = Clip("a", one.frames, reference=of_levels(120, 120))
    a, b = 100 / 255, 120 / 255
    assert ssim(pair) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), rel=1e-5)
    with pytest.raises(UserError, match="it has 2 frames of 32x32, the other video 3 frames of 32x32"):
        psnr(Clip("a", one.frames, reference=of_levels(1, 2, 3)))


def test_the_step_between_frames_of_sides_that_blocks_do_not_divide() -> None:
    one, other = np.zeros((2, 20, 13, 3), np.uint8)
    other[16:, 8:] = 60
    mean, most = step(one, other)
    assert mean == pytest.approx(60 * 4 * 5 / (20 * 13))
    assert most == pytest.approx(60)


def test_one_frame_has_no_time() -> None:
    clip = of_levels(100)
    assert [metric(clip) for metric in (flicker, stutter, repeated, frozen, colour_drift)] == [None] * 5
    assert sharpness(clip) == 0
    assert Seam(SeamOptions())(clip) is None


def test_sizes_that_change_and_frames_that_do_not_fit_in_memory_are_one_line(
    tmp_path: Path,
    moving: Callable[..., np.ndarray],
    write: Callable[[Path, np.ndarray], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path / "a.mp4", moving(0, 9))
    monkeypatch.setattr("ea_runtime.evaluation.clip.MAX_BYTES", 50_000)
    with pytest.raises(UserError, match=r"a\.mp4' has more than 0 GiB of frames.*; cut it"):
        read_clip(tmp_path / "a.mp4")


def test_every_bundled_metric_judges_a_moving_clip(moving: Callable[..., np.ndarray]) -> None:
    clip = Clip("a", moving(0))
    for name in ("sharpness", "flicker", "stutter", "repeated", "frozen", "colour-drift", "seam"):
        value = Chosen(name).build()(clip)
        assert isinstance(value, float)
        assert value >= 0
