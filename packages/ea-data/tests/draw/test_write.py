from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ea_data.draw import write
from ea_data.draw.files import find_sources, read_frames
from ea_data.draw.scene import Scene, render, sample_scene
from ea_data.draw.write import DrawConfig, write_set, write_video


def test_a_set_holds_what_it_lists(tmp_path):
    seen = []
    write_set(tmp_path / "new" / "set", DrawConfig(3, 2, seed=7, split="all"), on_item=seen.append)
    folder = tmp_path / "new" / "set"
    assert seen == [1, 2, 3, 4, 5]
    assert [path.name for path in folder.parent.iterdir()] == ["set"]
    entries = json.loads((folder / "dataset.json").read_text())
    truth = [json.loads(line) for line in (folder / "truth.jsonl").read_text().splitlines()]
    assert [entry["type"] for entry in entries] == ["video"] * 3 + ["image"] * 2
    for entry, line in zip(entries, truth, strict=True):
        assert set(entry) == {"file_path", "text", "type", "width", "height"}
        assert (entry["file_path"], entry["text"], entry["type"]) == (
            line["file_path"],
            line["caption"],
            line["type"],
        )
        assert (line["seed"], line["split"], line["num_frames"]) == (
            7,
            "all",
            18 if entry["type"] == "video" else 1,
        )
        scene = Scene(**line["scene"])
        assert scene == sample_scene(7, line["index"], "all")
        drawn = render(scene, entry["height"], entry["width"], line["num_frames"])
        read = read_frames(folder / entry["file_path"])
        assert read.shape == drawn.shape
        error = np.abs(read.astype(int) - drawn)
        assert 10 * np.log10(255**2 / max((error**2).mean(), 1e-9)) > 40


def test_equal_seeds_give_equal_sets(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_set(tmp_path / name, DrawConfig(3, 1, seed=seed))
    for name in ("dataset.json", "truth.jsonl", "pictures/000000.png"):
        same, other = (tmp_path / "a" / name).read_bytes(), (tmp_path / "b" / name).read_bytes()
        assert same == other
        assert same != (tmp_path / "c" / name).read_bytes()
    clips = [read_frames(tmp_path / name / "clips" / "000001.mp4") for name in "ab"]
    assert (clips[0] == clips[1]).all()


def test_flat_colours_survive_the_codec(tmp_path):
    for index in range(6):
        scene = sample_scene(5, index)
        drawn = render(scene)
        write_video(tmp_path / f"{index}.mp4", drawn, 12)
        error = np.abs(read_frames(tmp_path / f"{index}.mp4").astype(int) - drawn)
        middle = (round(scene.start_y * 63), round(scene.start_x * 63))
        assert error[0][middle].max() <= 3
        assert error[:, 0, 0].max() <= 3
        assert error.mean() < 1


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="`folder` must be a new or empty folder") as error:
        write_set(tmp_path / "set", DrawConfig(1))
    assert "\n" not in str(error.value)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="`folder` must be a new or empty folder"):
        write_set(tmp_path / "file", DrawConfig(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "set"]
    assert (tmp_path / "set" / "mine.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    write_set(tmp_path / "set", DrawConfig(0, 1))
    assert (tmp_path / "set" / "pictures" / "000000.png").is_file()


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(write, "write_video", fail)
    with pytest.raises(RuntimeError):
        write_set(tmp_path / "set", DrawConfig(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "values",
    [
        {"num_clips": 0},
        {"num_clips": -1, "num_pictures": 3},
        {"num_clips": 1, "seed": -1},
        {"num_clips": 1, "split": "test"},
        {"num_clips": 1, "height": 65},
        {"num_clips": 1, "width": 8},
        {"num_clips": 1, "num_frames": 0},
        {"num_clips": 1, "fps": 0},
        {"num_clips": 1, "style": "dotted"},
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(values):
    with pytest.raises(ValueError) as error:
        DrawConfig(**values)
    assert "\n" not in str(error.value)


def test_listings_may_not_point_outside(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps([{"file_path": "../x.mp4", "text": "a"}]))
    with pytest.raises(ValueError, match="outside its folder"):
        find_sources([tmp_path / "dataset.json"])


def test_a_colon_in_a_relative_path_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(Path("file:a.mp4"), np.zeros((2, 16, 16, 3), np.uint8), 12)
    assert Path("file:a.mp4").stat().st_size > 0
