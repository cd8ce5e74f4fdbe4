"""Known damage of growing strength is ranked right by the metric that is for it, through files and all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ea_runtime.evaluation.chosen import choose
from ea_runtime.evaluation.report import evaluate
from ea_runtime.evaluation.videos import find_videos

#: damage that is also compared with the undamaged, frame by frame
AGAINST = ("blur", "seam offset")
#: the first is none
STRENGTHS = range(4)


def _shifted(frames: np.ndarray, levels: np.ndarray | float) -> np.ndarray:
    return np.clip(frames.astype(float) + levels, 0, 255).round().astype(np.uint8)


def blur(frames: np.ndarray, strength: int) -> np.ndarray:
    soft = ImageFilter.GaussianBlur(0.6 * strength)
    return np.stack([np.asarray(Image.fromarray(frame).filter(soft)) for frame in frames])


def frame_drop(frames: np.ndarray, strength: int) -> np.ndarray:
    """So many frames are left out, at one place each."""
    return np.delete(frames, [6, 11, 16][:strength], axis=0)


def colour_shift(frames: np.ndarray, strength: int) -> np.ndarray:
    """Colours move away from those of the start, evenly."""
    way = np.linspace(0, 1, len(frames))[:, None, None, None]
    return _shifted(frames, way * np.array([6.0, -2.0, -6.0]) * strength)


def flicker(frames: np.ndarray, strength: int) -> np.ndarray:
    return _shifted(frames, 2.0 * strength * (-1.0) ** np.arange(len(frames))[:, None, None, None])


def repeated_frame(frames: np.ndarray, strength: int) -> np.ndarray:
    """So many frames are shown again in place of the next."""
    places = np.arange(len(frames))
    for place in [5, 13, 17][:strength]:
        places[place] = place - 1
    return frames[places]


def seam_offset(frames: np.ndarray, strength: int) -> np.ndarray:
    """Every other chunk is brighter."""
    is_odd = np.arange(len(frames)) // 9 % 2
    return _shifted(frames, 2.0 * strength * is_odd[:, None, None, None])


#: damage -> (what makes it, the metric that is to see it)
DAMAGE: dict[str, tuple[Callable[[np.ndarray, int], np.ndarray], str]] = {
    "blur": (blur, "sharpness"),
    "frame drop": (frame_drop, "stutter"),
    "colour shift": (colour_shift, "colour-drift"),
    "flicker": (flicker, "flicker"),
    "repeated frame": (repeated_frame, "repeated"),
    "seam offset": (seam_offset, "seam"),
}


@pytest.fixture(scope="module")
def reports(
    tmp_path_factory: pytest.TempPathFactory,
    moving: Callable[..., np.ndarray],
    write: Callable[[Path, np.ndarray], None],
) -> dict[tuple[str, int], dict[str, Any]]:
    """(damage, strength) -> report of two videos against the undamaged ones."""
    root = tmp_path_factory.mktemp("damage")
    clips = [moving(seed) for seed in range(2)]
    for name, (make, _) in DAMAGE.items():
        for strength in STRENGTHS:
            for number, frames in enumerate(clips):
                damaged = make(frames, strength) if strength else frames
                write(root / f"{name} {strength}" / f"{number}.mp4", damaged)
    whole = find_videos(root / "blur 0")
    chosen = choose([metric for _, metric in DAMAGE.values()], is_compared=False)
    pairs = [*chosen, *choose(["psnr", "ssim"], is_compared=True)]
    return {
        (name, strength): evaluate(
            find_videos(root / f"{name} {strength}"),
            whole if name in AGAINST else None,
            pairs if name in AGAINST else chosen,
            jobs=1,
        ).data["metrics"]
        for name in DAMAGE
        for strength in STRENGTHS
    }


def ranked(reports: dict[tuple[str, int], dict[str, Any]], damage: str, metric: str) -> bool:
    """True if every strength is worse than the one before, on average."""
    found = [reports[damage, strength][metric] for strength in STRENGTHS]
    steps = np.diff([one["ours"]["mean"] for one in found])
    return bool((steps < 0).all() if found[0]["better"] == "higher" else (steps > 0).all())


@pytest.mark.parametrize("damage", DAMAGE)
def test_stronger_damage_ranks_worse(damage: str, reports: dict[tuple[str, int], dict[str, Any]]) -> None:
    assert ranked(reports, damage, DAMAGE[damage][1])


@pytest.mark.parametrize("damage", AGAINST)
@pytest.mark.parametrize("metric", ["psnr", "ssim"])
def test_the_distance_to_the_undamaged_grows(
    damage: str, metric: str, reports: dict[tuple[str, int], dict[str, Any]]
) -> None:
    if metric == "ssim" and damage != "blur":
        assert reports[damage, 0][metric]["ours"]["mean"] == 1  # it hardly sees a shift of all levels
    else:
        assert ranked(reports, damage, metric)


def test_a_metric_for_something_else_does_not_rank_it(
    reports: dict[tuple[str, int], dict[str, Any]],
) -> None:
    """The twin: what the tests above ask for is not true of any metric."""
    assert not ranked(reports, "blur", "repeated")
    assert not ranked(reports, "seam offset", "sharpness")


def test_damage_is_worse_beyond_doubt_and_none_is_equal(
    reports: dict[tuple[str, int], dict[str, Any]],
) -> None:
    assert reports["seam offset", 3]["seam"]["difference"]["verdict"] == "worse"
    assert {one["difference"]["verdict"] for one in reports["blur", 0].values() if one["difference"]} == {
        "equal"
    }
    assert reports["blur", 0]["psnr"]["ours"]["mean"] == 100
