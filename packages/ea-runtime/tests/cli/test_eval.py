"""`ea eval`: table, JSON and page, two folders, what cannot be read, and wrong requests in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ea_runtime.cli.main import run
from ea_runtime.generation.sidecar import write_sidecar
from ea_runtime.video.output import plan_output

SETTINGS = {
    "prompt": "a <b>red</b> circle",
    "negative_prompt": "",
    "num_frames": 12,
    "height": 32,
    "width": 32,
    "num_inference_steps": 4,
    "guidance_scale": 2.0,
    "sampler": "dpm++",
    "seed": 7,
    "smooth": True,
}


def write(path: Path, seed: int, shift: int = 0) -> None:
    """A square that moves, and its sidecar."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(20, 200, (8, 8, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with plan_output(path).writer(12) as add:
        for number in range(12):
            frame = np.minimum(ground.astype(int) + shift * (number % 2), 255).astype(np.uint8)
            frame[8:16, number : number + 8] = 250
            add(frame)
    record = {
        "settings": SETTINGS,
        "fps": 12,
        "model": {"name": "tiny", "sha256": "0" * 64},
        "device": {"device": "cpu", "dtype": "float32"},
        "versions": {},
        "output": {"file": path.name, "kind": "mp4", "sha256": "0" * 64},
    }
    write_sidecar(path.with_suffix(".json"), record)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders: good, flickering (of the same names), one more of other names."""
    root = tmp_path_factory.mktemp("videos")
    for seed in range(3):
        write(root / "good" / f"v{seed}.mp4", seed)
        write(root / "flickering" / f"v{seed}.mp4", seed, shift=6)
        write(root / "named" / f"w{seed}.mp4", seed)
    return root


@pytest.fixture
def videos(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders, where the test may change them; ea-runtime's own metrics alone."""
    monkeypatch.setenv("EA_NO_PLUGINS", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return shutil.copytree(source, tmp_path / "videos")


def judged(*words: str | Path, code: int = 0) -> None:
    assert run(["eval", *map(str, words), "--jobs", "1"]) == code


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "eval.json").read_text(encoding="utf-8"))


def test_a_folder_gives_a_table_json_and_a_page(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged(videos / "good", "-o", videos / "report")
    shown = capsys.readouterr().out
    assert "good: 3 videos" in shown
    assert re.search(r"flicker +lower +[\d.]+ +levels", shown)
    data = report(videos / "report")
    assert data["videos"][0]["prompt"] == SETTINGS["prompt"]
    assert data["metrics"]["seam"]["options"] == {"chunk": 9}
    assert "psnr" not in data["metrics"]
    page = (videos / "report" / "eval.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;red&lt;/b&gt;" in page
    assert SETTINGS["prompt"] not in page
    assert not re.search(r"<script|https?://|<link|src=\"(?!data:)", page)


def test_the_same_videos_give_the_same_bytes_for_any_number_of_processes(videos: Path) -> None:
    os.makedirs(videos / "elsewhere")
    shutil.copytree(videos / "good", videos / "elsewhere" / "good")
    judged(videos / "good", "-o", videos / "one")
    assert run(["eval", str(videos / "elsewhere" / "good"), "-o", str(videos / "two"), "--jobs", "2"]) == 0
    one, two = ((videos / name / "eval.json").read_bytes() for name in ("one", "two"))
    assert one == two
    assert (videos / "one" / "eval.html").read_bytes() == (videos / "two" / "eval.html").read_bytes()
    judged(videos / "flickering", "-o", videos / "three")  # the twin: other videos, other bytes
    assert report(videos / "three")["metrics"] != report(videos / "one")["metrics"]


def test_two_folders_are_compared_in_pairs(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged(videos / "flickering", "--against", videos / "good", "-o", videos / "report")
    data = report(videos / "report")
    found = data["metrics"]["flicker"]["difference"]
    assert (found["pairs"], found["verdict"]) == (3, "worse")
    assert 0 < found["low"] <= found["mean"] <= found["high"]
    assert data["metrics"]["psnr"]["ours"]["count"] == 3
    assert re.search(r"flicker .*\+.* worse", capsys.readouterr().out)
    shutil.copytree(videos / "good", videos / "again")
    judged(videos / "again", "--against", videos / "good", "-o", videos / "report")
    metrics = report(videos / "report")["metrics"]
    assert {one["difference"]["verdict"] for one in metrics.values() if one["difference"]} == {"equal"}
    assert metrics["psnr"]["ours"]["mean"] == 100


def test_other_names_are_two_sets_and_pairs_of_them_are_refused(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(videos / "named", "--against", videos / "good", "-o", videos / "report")
    assert "no names match: 'named' and 'good' are compared as two sets" in capsys.readouterr().err
    data = report(videos / "report")
    assert not data["is_paired"]
    assert data["metrics"]["flicker"]["difference"]["pairs"] == 0
    assert data["metrics"]["psnr"]["ours"] is None
    judged(videos / "named", "--against", videos / "good", "--metric", "psnr", code=2)
    assert "'psnr' needs videos of the same names" in capsys.readouterr().err


def test_a_damaged_video_is_listed_and_the_rest_is_judged(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (videos / "good" / "v1.mp4").write_bytes(b"no video" * 99)
    judged(videos / "good", "--against", videos / "flickering", "-o", videos / "report", code=1)
    error = capsys.readouterr().err
    assert re.search(r"not judged: v1\.mp4: 'v1\.mp4' cannot be read as a video", error)
    data = report(videos / "report")
    assert data["folder"]["unreadable"] == 1
    assert data["metrics"]["flicker"]["difference"]["pairs"] == 2
    assert "cannot be read as a video" in (videos / "report" / "eval.html").read_text(encoding="utf-8")


def test_a_decoder_that_crashes_takes_one_video_with_it(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "crash.py"
    plugin.write_text(
        "import os\n"
        "from ea_runtime import hookimpl\nfrom ea_runtime.records import MetricRecord, Named\n"
        "def crash(clip):\n    return os._exit(9) if clip.name == 'v1.mp4' else 1.0\n"
        "def fault(clip):\n    return 1 / (clip.name != 'v0.mp4')\n"
        "@hookimpl\ndef ea_metrics():\n"
        "    return [MetricRecord(f.__name__, 'for tests', lambda options, f=f: f) for f in (crash, fault)]\n"
    )
    words = ["--plugin", str(plugin), "eval", str(videos / "good"), "--json"]
    assert run([*words, "--metric", "crash", "--jobs", "2"]) == 1
    out, error = capsys.readouterr()
    assert "not judged: v1.mp4: the process that read it crashed" in error
    assert json.loads(out)["metrics"]["crash"]["ours"]["count"] == 2
    assert run([*words, "--metric", "fault", "--jobs", "1"]) == 1
    assert "not judged: v0.mp4: the metric 'fault' failed: ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="names are not bytes there")
def test_a_name_that_is_no_utf8(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(videos / "good" / "v0.mp4", os.fsencode(videos / "good") + b"/\xff\x1b[31m.mp4")
    (videos / "good" / "v1.mp4").write_bytes(b"")
    judged(videos / "good", "-o", videos / "report", code=1)
    assert "?\x1b[31m.mp4" in [row["name"] for row in report(videos / "report")["videos"]]
    out, error = capsys.readouterr()
    assert "\x1b[31m" not in out + error
    assert "not judged: v1.mp4: 'v1.mp4' cannot be read as a video" in error


def test_a_sidecar_that_is_not_ours_is_a_note(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "good" / "v0.json").write_text('{"caption": "a dog"}')
    judged(videos / "good", "-o", videos / "report")
    assert "note: v0.mp4 is judged without a prompt: " in capsys.readouterr().err
    assert report(videos / "report")["folder"]["prompts"] == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], r"`folder` must be a folder of videos, got 'nowhere', which is not there"),
        (["good/v0.mp4"], r"`folder` must be a folder.* got the file 'good/v0\.mp4'; give its folder"),
        (["empty"], r"`folder` 'empty' has no videos, it holds nothing; give a folder of \.mp4"),
        (["texts"], r"`folder` 'texts' has no videos, it holds 1 other files"),
        (["good", "--against", "empty"], r"`against` 'empty' has no videos"),
        (["good", "--metric", "sharpnes"], r"no metric is called 'sharpnes'; .*did you mean 'sharpness'\?"),
        (["good", "--metric", "warping"], r"the metric 'warping' comes with ea-data"),
        (["good", "--metric", "ssim"], r"'ssim' compares two folders; name the other one with --against"),
        (["good", "--set", "seam.chunks=8"], r"metric 'seam': unknown key `chunks`; did you mean 'chunk'\?"),
        (
            ["good", "--set", "seam"],
            r"`--set` must be METRIC\.OPTION=VALUE, such as seam\.chunk=8, got 'seam'",
        ),
        (["good", "--set", "flicker.x=1"], r"'flicker' has no options, got x; leave out --set"),
        (
            ["good", "--metric", "clip-score"],
            r"clip-score: `clip` is not set; give the local path of the folder",
        ),
        (["good", "--metric", "vbench"], r"vbench: the package 'vbench' is not installed"),
        (
            ["good", "--against", "good", "--metric", "fvd"],
            r"fvd: `network` is not set; give the local path of",
        ),
        (["good", "-o", "texts/a.txt"], r"`output` must be a folder.*got the file 'texts/a\.txt'"),
    ],
)
def test_a_wrong_request_is_one_line(
    words: list[str],
    line: str,
    videos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(videos)
    (videos / "empty").mkdir()
    (videos / "texts").mkdir()
    (videos / "texts" / "a.txt").write_text("a")
    assert run(["eval", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(line, error)
    assert "\n" not in error


def test_folders_of_frames_with_a_sidecar_are_videos_and_pictures_are_not(
    videos: Path, moving_frames: Callable[[Path], None]
) -> None:
    moving_frames(videos / "good" / "frames")
    shutil.copy(videos / "good" / "frames" / "00000.png", videos / "good" / "picture.png")
    sidecar = json.loads((videos / "good" / "v0.json").read_text())
    sidecar["output"] |= {"file": "frames", "kind": "folder"}
    (videos / "good" / "frames.json").write_text(json.dumps(sidecar))
    judged(videos / "good", "-o", videos / "report")
    assert [row["name"] for row in report(videos / "report")["videos"]] == [
        "frames",
        "v0.mp4",
        "v1.mp4",
        "v2.mp4",
    ]


@pytest.fixture
def moving_frames() -> Callable[[Path], None]:
    """Writes a folder of frames."""

    def to_folder(path: Path) -> None:
        with plan_output(path).writer(12) as add:
            for level in range(0, 120, 20):
                add(np.full((16, 16, 3), level, np.uint8))

    return to_folder
