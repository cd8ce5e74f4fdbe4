from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from ea_data.commands import app
from ea_data.draw.caption import parse_prompt
from ea_data.draw.scene import HELDOUT_COMBINATIONS, Combination, place, render
from ea_data.draw.write import write_video

runner = CliRunner()


def _run(*words: object):
    return runner.invoke(app, [str(word) for word in words])


@pytest.fixture
def frames():
    import numpy as np

    return render(place(("red", "circle", "small", "right", "black"), np.random.default_rng(0)))


def test_draw_then_check_finds_everything_right(tmp_path):
    result = _run(
        "draw", tmp_path / "set", "--num-clips", 8, "--num-pictures", 3, "--seed", 1, "--split", "heldout"
    )
    assert result.exit_code == 0, result.output
    result = _run("check-drawn", tmp_path / "set", "-o", tmp_path / "adherence.json")
    assert result.exit_code == 0, result.output
    assert "motion" in result.output
    rates = json.loads((tmp_path / "adherence.json").read_text())["rates"]
    assert rates["motion"] == {"rate": 1.0, "right": 8, "asked": 8}
    assert rates["all"] == {"rate": 1.0, "right": 11, "asked": 11}


def test_check_reads_sidecars_of_videos_gifs_pictures_and_frame_folders(tmp_path, frames):
    write_video(tmp_path / "video.mp4", frames, 12)
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(tmp_path / "gif.gif", save_all=True, append_images=pictures[1:], duration=80)
    pictures[0].save(tmp_path / "picture.png")
    (tmp_path / "folder").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / "folder" / f"{number:04d}.png")
    for name in ("video", "gif", "picture", "folder"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"prompt": "a red circle moves right", "seed": 1}))
    pictures[0].save(tmp_path / "stray.png")
    result = _run("check-drawn", tmp_path, "-o", tmp_path)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "adherence.json").read_text())
    assert report["num_clips"] == 4
    assert report["rates"]["all"]["right"] == 4
    assert report["rates"]["motion"]["asked"] == 3
    assert "stray.png" in result.output
    result = _run("check-drawn", tmp_path / "video.mp4", tmp_path / "folder")
    assert "2 clips" in result.output


@pytest.mark.parametrize("name", ["absent", "empty", "bad.mp4", "bare.png"])
def test_what_cannot_be_checked_is_one_line(tmp_path, name, frames):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "bad.json").write_text('{"prompt": "a red circle"}')
    Image.fromarray(frames[0]).save(tmp_path / "bare.png")
    result = _run("check-drawn", tmp_path / name)
    assert isinstance(result.exception, ValueError)
    assert "\n" not in str(result.exception)
    assert name in str(result.exception) or name == "empty"


def test_prompts_are_held_out(tmp_path):
    result = _run("prompts", 12, "--seed", 3)
    lines = result.output.splitlines()
    assert len(lines) == 12
    assert all(Combination(**parse_prompt(line)) in HELDOUT_COMBINATIONS for line in lines)
    assert _run("prompts", 12, "--seed", 3).output == result.output


def test_help_imports_nothing_heavy():
    code = (
        "import sys, ea_data.commands\n"
        "heavy = {'numpy', 'av', 'PIL', 'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
