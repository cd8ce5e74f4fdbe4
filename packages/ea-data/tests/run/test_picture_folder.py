"""`ea data run --pictures` on a folder as people have it: every kind of picture, captions of every tool."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ea_runtime.cli.main import run

PROFILE = """
[split]
name = "whole"
[caption]
name = "folder"
missing_text = "empty"
"""


def test_a_folder_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    ramp = np.arange(64 * 64).reshape(64, 64) % 256
    Image.fromarray((ramp * 257).astype(np.uint16)).save(raw / "grey.tif")
    Image.fromarray(np.dstack([ramp, ramp, ramp, ramp]).astype(np.uint8)).save(raw / "alpha.tif")
    Image.new("RGB", (64, 64), (10, 20, 30)).save(raw / "plain.jfif", "JPEG")
    Image.new("RGB", (64, 64), (90, 20, 30)).save(raw / "silent.png")
    (raw / "cut.png").write_bytes((raw / "silent.png").read_bytes()[:60])
    (raw / "grey.TXT").write_text("a grey ramp", encoding="utf-16")
    (raw / "alpha.tif.txt").write_text("see-through gr4ph1c", encoding="utf-8-sig")
    (raw / "plain.caption").write_text("a plain thing\r\n")
    (tmp_path / "profile.toml").write_text(PROFILE)
    words = ["--pictures", "--profile", str(tmp_path / "profile.toml"), "--workers", "1"]
    assert run(["data", "run", str(raw), "-o", str(tmp_path / "set"), *words]) == 0
    *_, summary, lost, _ = capsys.readouterr().err.splitlines()
    assert "5 files, 4 clips, 4 kept; 1 error;" in summary
    assert "empty captions: 1 (" in summary
    assert "1 of 4 captions looked at: gr4ph1c;" in lost
    entries = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert sorted(entry["text"] for entry in entries) == [
        "",
        "a grey ramp",
        "a plain thing",
        "see-through gr4ph1c",
    ]
    files = {entry["text"]: tmp_path / "set" / entry["file_path"] for entry in entries}
    with Image.open(files["a grey ramp"]) as picture:
        assert np.array_equal(np.asarray(picture)[:, :, 0], ramp)
    with Image.open(files["see-through gr4ph1c"]) as picture:
        assert picture.mode == "RGBA"
    assert files["a plain thing"].suffix == ".jpg"

    # once all have captions, nothing is said of them
    (raw / "silent.txt").write_text("now it speaks")
    assert run(["data", "run", str(raw), "-o", str(tmp_path / "again"), *words]) == 0
    assert "empty" not in capsys.readouterr().err
