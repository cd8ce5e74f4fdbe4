"""The check of videos made from pictures: right ones pass, and each fault is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ea_data.draw.commands import app
from ea_data.draw.known import check_known
from ea_data.draw.scene import render, sample_scene

SCENE = next(scene for index in range(99) if (scene := sample_scene(7, index)).motion == "right")
FRAMES = render(SCENE)
GIVEN = {"image": FRAMES[0], "image_end": FRAMES[-1]}


def test_a_right_video_passes_and_each_fault_is_found() -> None:
    assert check_known(FRAMES, GIVEN, "right").right == {
        "first frame": True, "last frame": True, "continues": True, "one way": True
    }  # fmt: skip
    other = FRAMES.copy()
    other[0] = FRAMES[9]
    assert not check_known(other, GIVEN, "right").right["first frame"]
    assert not check_known(other, GIVEN, "right").right["continues"]
    other = FRAMES[::-1]
    assert not check_known(other, GIVEN, "right").right["last frame"]
    assert not check_known(other, GIVEN, "right").right["one way"]
    assert not check_known(np.stack([FRAMES[0]] * 18), {"image": FRAMES[0]}, "right").right["one way"]
    still = check_known(np.stack([FRAMES[0]] * 18), {"image": FRAMES[0]}, "still")
    assert still.right == {"first frame": True, "continues": True}


def test_check_drawn_finds_the_pictures_by_the_sidecar(tmp_path: Path) -> None:
    Image.fromarray(FRAMES[0]).save(tmp_path / "first.png")
    folder = tmp_path / "clip"
    folder.mkdir()
    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(folder / f"{number:04d}.png")
    settings = {"prompt": "a shape moves right", "image": str(tmp_path / "first.png")}
    (tmp_path / "clip.json").write_text(json.dumps({"settings": settings}))
    result = CliRunner().invoke(app, ["check-drawn", str(folder), "-o", str(tmp_path / "found.json")])
    assert result.exit_code == 0, result.output
    assert "first frame to the given one: median 99.0 dB" in result.output
    known = json.loads((tmp_path / "found.json").read_text())["known"]
    assert known["right"] == {"first frame": [1, 1], "continues": [1, 1], "one way": [1, 1]}
    (tmp_path / "first.png").unlink()
    result = CliRunner().invoke(app, ["check-drawn", str(folder)])
    assert isinstance(result.exception, ValueError)
    assert "(`image`), which cannot be read" in str(result.exception)


@pytest.mark.parametrize("count", [(-1, 0, 0, 0), (0, 0, 0, 0)])
def test_counts_are_checked(count: tuple[int, ...], tmp_path: Path) -> None:
    names = ("--num-clips", "--num-pictures", "--num-continued", "--num-bridged")
    words = [word for pair in zip(names, map(str, count), strict=True) for word in pair]
    result = CliRunner().invoke(app, ["draw", str(tmp_path / "set"), *words])
    assert isinstance(result.exception, ValueError)
