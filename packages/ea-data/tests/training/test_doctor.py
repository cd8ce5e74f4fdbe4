"""What `ea data doctor` finds in a set, and that it finds nothing where nothing is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ea_runtime.cli.main import run as ea

Draw = Callable[..., Path]


def write_set(folder: Path, texts: dict[str, str]) -> Path:
    entries = [{"file_path": name, "text": text, "type": "video"} for name, text in texts.items()]
    (folder / "dataset.json").write_text(json.dumps(entries))
    return folder


def doctor(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = ea(["data", "doctor", str(folder), "--json", "--workers", "1", *words])
    return code, json.loads(capsys.readouterr().out)


def test_a_sound_set_has_nothing_wrong(
    tmp_path: Path, draw_video: Draw, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        draw_video(tmp_path / f"{number}.mp4", 12, seed=number, size=(64, 64))
    write_set(tmp_path, {f"{number}.mp4": f"clip {number}" for number in range(3)})
    code, told = doctor(tmp_path, capsys, "--batch-size", "2")
    assert (code, told["findings"]) == (0, [])
    assert (told["num_samples"], told["num_videos"], told["num_pictures"], told["steps"]) == (3, 3, 0, 2)
    assert told["buckets"] == [
        {"kind": "video", "num_frames": 9, "height": 64, "width": 64, "samples": 3, "batches": 2, "last": 1}
    ]


def test_every_kind_of_fault_is_found_counted_and_named(
    tmp_path: Path, draw_video: Draw, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = draw_video(tmp_path / "whole.mp4", 24, size=(64, 64)).read_bytes()
    (tmp_path / "twin.mp4").write_bytes(whole)
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    draw_video(tmp_path / "short.mp4", 4, seed=1, size=(64, 64))
    draw_video(tmp_path / "wide.mp4", 24, seed=2, size=(64, 128))
    texts = {"whole.mp4": "", "twin.mp4": "word " * 200, "cut.mp4": "a", "short.mp4": "b", "wide.mp4": "c"}
    write_set(tmp_path, texts)
    code, told = doctor(tmp_path, capsys, "--batch-size", "2")
    assert code == 1
    found = {finding["name"]: finding for finding in told["findings"]}
    fatal = {name: finding["files"] for name, finding in found.items() if finding["is_fatal"]}
    assert set(fatal) == {"empty captions", "unreadable files"}
    assert fatal["empty captions"] == ["whole.mp4"]
    assert [line.partition(":")[0] for line in fatal["unreadable files"]] == ["cut.mp4"]
    assert found["captions over 120 tokens"]["count"] == 1
    assert found["files with the content of another"]["files"] == ["twin.mp4 = whole.mp4"]
    assert found["videos shorter than the window"]["files"] == ["short.mp4"]
    assert found["samples in buckets smaller than a batch"]["count"] == 2
    assert told["longest_caption"] > 120

    # without the files, what the list alone tells
    code, told = doctor(tmp_path, capsys, "--quick")
    assert code == 1
    assert "unreadable files" not in {finding["name"] for finding in told["findings"]}


def test_words_that_cleaning_removes_and_small_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = {
        "0.png": "gr4ph1c red circle",
        "1.png": "一只红色的圆形",
        "2.png": "A red-haired cat, (best:1.2)",
    }
    for number, name in enumerate(captions):
        Image.new("RGB", (64, 64 if number else 24), (number, 0, 0)).save(tmp_path / name)
    rows = [{"file_path": name, "text": text, "type": "image"} for name, text in captions.items()]
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    code, told = doctor(tmp_path, capsys, "--batch-size", "1")
    found = {finding["name"]: finding["files"] for finding in told["findings"]}
    assert found["captions that lose words to cleaning"] == ["0.png: gr4ph1c", "1.png: 一只红色的圆形"]
    assert found["empty captions"] == ["1.png"]  # nothing is left of it
    assert found["sizes below 32 pixels"] == ["0.png (64x24)"]
    assert code == 1
    for row in rows:
        row |= {"width": 64, "height": 64, "text": "a cat"}
    rows[0] |= {"height": 24}
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    code, told = doctor(tmp_path, capsys, "--batch-size", "1", "--quick")
    names = {finding["name"] for finding in told["findings"]}
    assert names == {"sizes below 32 pixels", "one caption for every file"}
    assert code == 0


def test_what_is_no_set_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ea(["data", "doctor", str(tmp_path)]) == 2
    told = capsys.readouterr().err.strip()
    assert "must be a set with a dataset.json" in told
    assert "\n" not in told
