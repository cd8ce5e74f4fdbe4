"""Raw video matches its truth and is the same for the same seed, and `ea data draw-raw` writes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ea_data.draw.raw import KINDS, RawScene, render_scene, render_video, sample_video
from ea_data.draw.raw_write import write_raw
from ea_runtime.cli.main import run
from ea_runtime.video.reader import read_frames

SIZE = {"height": 128, "width": 224, "fps": 8}


def test_a_video_depends_on_seed_and_index_alone() -> None:
    assert sample_video(1, 12, **SIZE) == sample_video(1, 12, **SIZE)
    assert sample_video(1, 12, **SIZE) != sample_video(2, 12, **SIZE)
    one, again = (next(render_video(sample_video(1, 3, **SIZE))) for _ in range(2))
    assert np.array_equal(one, again)


@pytest.mark.parametrize("index", range(len(KINDS)))
def test_frames_are_as_many_and_as_large_as_the_truth_says(index: int) -> None:
    video = sample_video(0, index, **SIZE)
    truth = video.truth("x.mp4")
    frames = list(render_video(video)) if video.num_frames < 60 else []
    assert all(frame.shape == (truth["height"], truth["width"], 3) for frame in frames)
    assert len(frames) in (0, truth["num_frames"])
    assert truth["num_frames"] == truth["scenes"][-1]["end_frame"]
    assert video.kind == truth["kind"] == KINDS[index]


@pytest.mark.parametrize(
    ("way", "shift"), [("right", (0, 3)), ("left", (0, -3)), ("down", (3, 0)), ("up", (-3, 0))]
)
def test_the_picture_goes_where_it_is_said_to(way: str, shift: tuple[int, int]) -> None:
    height, width = 128, 224
    speed = 3 * 8 / np.hypot(height, width)  # 3 pixels a frame
    first, second = list(render_scene(RawScene((0, 0, 0), 2, speed, way, 0, "scenes"), height, width, 8))
    moved = np.roll(first, shift, (0, 1))[4:-4, 4:-4].astype(int)
    assert np.abs(moved - second[4:-4, 4:-4]).mean() < 1


def test_text_covers_what_it_is_said_to() -> None:
    for index, (low, high) in ((3, (0.02, 0.07)), (4, (0.002, 0.006))):
        scene = sample_video(0, index).scenes[0]
        assert low < scene.text_area < high
        frame = next(render_scene(scene, 270, 480, 24))
        rows, columns = np.nonzero((frame == 250).all(-1))
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / (270 * 480)
        assert area == pytest.approx(scene.text_area, rel=0.02)


def test_a_copy_is_its_neighbour_made_smaller() -> None:
    source, copy = sample_video(0, 0), sample_video(0, 1)
    assert copy.copy_of == 0
    assert (copy.height, copy.width) == (180, 320)
    assert copy.cuts() == source.cuts()


def test_the_command_writes_videos_texts_and_truth(tmp_path: Path) -> None:
    out = tmp_path / "raw"
    words = ["data", "draw-raw", "3", "-o", str(out), "--height", "128", "--width", "224", "--fps", "8"]
    assert run(words) == 0
    lines = [json.loads(line) for line in (out / "truth.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == list(KINDS[:3])
    for line in lines:
        file = out / line["file_path"]
        assert sum(1 for _ in read_frames(file)) == line["num_frames"]
        assert file.with_suffix(".txt").read_text().strip() == line["caption"]
    assert run(words) == 2, "the folder is not empty"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"height": 127}, "`height`"),
        ({"width": 64}, "`width`"),
        ({"fps": 2}, "`fps`"),
        ({"num_videos": 0}, "`num"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_a_folder_is_made(
    tmp_path: Path, wrong: dict, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        write_raw(tmp_path / "x", **{"num_videos": 1, **wrong})
    assert not (tmp_path / "x").exists()
