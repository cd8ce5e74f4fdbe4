"""Clips with given frames: where they start and end, and what a set says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ea_data.draw.files import read_frames
from ea_data.draw.given import BRIDGE_FRAMES, sample_given
from ea_data.draw.known import way
from ea_data.draw.scene import EXTENTS, render, trajectory
from ea_data.draw.write import DrawConfig, write_set
from ea_data.training.dataset_json import read_list


def test_continued_clips_wait_are_on_their_way_or_have_arrived() -> None:
    scenes = [sample_given(3, index, "train", "start", 18) for index in range(400)]
    moving = [scene for scene in scenes if scene.motion in ("left", "right", "up", "down")]
    ways = [np.abs(np.diff(np.stack(trajectory(scene, 18)[:2]), axis=1)).sum(0) for scene in moving]
    waits = np.mean([way[:2].sum() == 0 and way.sum() > 0 for way in ways])
    arrived = np.mean([way.sum() == 0 for way in ways])
    assert 0.3 < waits < 0.5
    assert 0.12 < arrived < 0.3
    # the speed is that of whole clips, wherever a clip starts
    steps = np.array([way.max() for way in ways if way.sum()])
    assert steps.max() < 0.05
    # the whole shape is within the frame all the time
    for scene in scenes:
        x, y, radius = trajectory(scene, 18)
        for axis, middle in ((0, x), (1, y)):
            reach = EXTENTS[scene.shape][axis] * radius
            assert (middle - reach > 0).all()
            assert (middle + reach < 1).all()


def test_bridged_clips_stand_move_and_stand() -> None:
    for index in range(30):
        scene = sample_given(3, index, "train", "ends", BRIDGE_FRAMES)
        x, y, radius = trajectory(scene, BRIDGE_FRAMES)
        for values in (x, y, radius):
            assert np.ptp(values[:9]) == 0
            assert np.ptp(values[-9:]) == 0
        assert abs(x[0] - x[-1]) + abs(y[0] - y[-1]) > 0


def test_a_set_marks_them_and_has_the_ends_of_its_clips(tmp_path: Path) -> None:
    config = DrawConfig(2, 1, seed=4, num_continued=2, num_bridged=1, has_ends=True)
    write_set(tmp_path / "set", config)
    rows = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert [row.get("given") for row in rows] == [None, None, None, "start", "start", "ends"]
    assert [item.given for item in read_list(tmp_path / "set")] == ["", "", "", "start", "start", "ends"]
    assert len(read_frames(tmp_path / "set" / rows[-1]["file_path"])) == BRIDGE_FRAMES
    clip = read_frames(tmp_path / "set" / rows[0]["file_path"]).astype(int)
    for end, frame in (("first", clip[0]), ("last", clip[-1])):
        with Image.open(tmp_path / "set" / "ends" / f"000000-{end}.png") as picture:
            assert np.abs(np.asarray(picture) - frame).mean() < 1
    # they change nothing else of a set
    write_set(tmp_path / "plain", DrawConfig(2, 1, seed=4))
    assert json.loads((tmp_path / "plain" / "dataset.json").read_text()) == rows[:3]
    rows[3]["given"] = "middle"
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="`given` must be 'start' or 'ends'"):
        read_list(tmp_path / "set")


def test_way_follows_the_shape() -> None:
    scene = sample_given(3, 8, "train", "ends", BRIDGE_FRAMES)
    track, drawn = way(render(scene, 64, 64, BRIDGE_FRAMES)), trajectory(scene, BRIDGE_FRAMES)
    assert np.abs(np.diff(track[:, 0]) - np.diff(drawn[0])).max() < 0.01
