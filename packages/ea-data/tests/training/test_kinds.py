"""Entries without `type`, and entries whose `type` is not their file's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ea_data.media.kinds import kind_at
from ea_data.training.dataset import EasyAnimateSet
from ea_data.training.dataset_json import read_list
from ea_runtime.cli.main import run as ea
from ea_runtime.training.data.dataset import BadSample, SetOptions
from ea_runtime.video.pictures import PICTURE_FORMATS

CASE = (Path(__file__).parents[5] / "shared" / "cases" / "data" / "list_no_type" / "json_no_type").resolve()
CONTAINERS = {
    "mp4": "mpeg4",
    "mov": "mpeg4",
    "mkv": "mpeg4",
    "webm": "libvpx",
    "avi": "mpeg4",
    "flv": "flv",
    "mpg": "mpeg2video",
    "ts": "mpeg2video",
    "wmv": "wmv2",
    "ivf": "libvpx",
}


def open_inline(folder: Path) -> EasyAnimateSet:
    return EasyAnimateSet(SetOptions(path=str(folder), decode="inline"))


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_videos_of_every_container(suffix: str, tmp_path: Path, draw_video: Callable[..., Path]) -> None:
    options = {} if suffix != "webm" else {"deadline": "realtime"}
    path = draw_video(tmp_path / f"a.{suffix}", 4, codec=CONTAINERS[suffix], size=(32, 48), options=options)
    assert kind_at(path) == "video"
    if suffix != "ts":  # nothing but its name tells a transport stream from other bytes
        assert kind_at(path.rename(tmp_path / "b.png")) == "video"


@pytest.mark.parametrize("name", PICTURE_FORMATS)
def test_pictures_of_every_format(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a", name)
    assert kind_at(tmp_path / "a") == "image"
    assert kind_at((tmp_path / "a").rename(tmp_path / "b.mp4")) == "image"


def test_a_file_that_cannot_be_opened_goes_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    kinds = [kind_at(tmp_path / name) for name in ("gone.mp4", "gone.PNG", "empty.mp4")]
    assert kinds == ["video", "image", "video"]


@pytest.mark.parametrize("row", [{}, {"type": ""}, {"type": None}, {"type": " "}])
def test_without_type_the_bytes_tell(
    row: dict[str, Any], tmp_path: Path, clips: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    clips.write_clip(tmp_path / "clip.mp4", 12)
    clips.write_clip(tmp_path / "misnamed.mp4", 15).rename(tmp_path / "misnamed.png")
    clips.write_picture(tmp_path / "0.png")
    names = ["clip.mp4", "misnamed.png", "0.png"]
    rows = [{"file_path": name, "text": f"of {name}", **row} for name in names]
    rows.append({"file_path": "0.png", "text": "told", "type": "image"})
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    entries = read_list(tmp_path)
    assert (entries.videos, entries.typed) == ([True, True, False, False], [False, False, False, True])
    data = open_inline(tmp_path)
    assert [bucket[:2] for bucket in data.buckets()] == [("video", 9)] * 2 + [("image", 1)] * 2
    assert data.sample(1, 0, data.buckets()[1]).frames.shape == (9, 32, 48, 3)
    assert "3 of 4 entries have no `type`; it was read from the files' bytes" in data.remarks()
    shutil.rmtree(tmp_path / "cache")
    code = ea(["data", "doctor", str(tmp_path), "--json", "--workers", "1", "--batch-size", "1"])
    found = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert found["entries without `type`"]["files"] == names
    assert code == 0
    assert not (tmp_path / "cache").exists(), "a look writes nothing"


@pytest.mark.parametrize(
    ("name", "says", "is_whole"),
    [("clip.mp4", "image", False), ("0.png", "video", False), ("moving.gif", "video", True)],
)
def test_a_type_that_contradicts_the_file(
    name: str,
    says: str,
    is_whole: bool,
    tmp_path: Path,
    clips: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clips.write_clip(tmp_path / "clip.mp4", 12)
    clips.write_picture(tmp_path / "0.png")
    frames = [Image.fromarray(clips.frame(i)) for i in range(12)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    rows = [{"file_path": name, "text": "a", "type": says}, {"file_path": "0.png", "text": "b"}]
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    data = open_inline(tmp_path)
    bucket = data.buckets()[0]
    if is_whole:
        assert data.sample(0, 0, bucket).frames.shape == (9, 32, 48, 3)
        return
    right = {"image": "video", "video": "image"}[says]
    expected = rf"^{name}: it is a .*`type` of its entry is '{says}'; write '{right}' there$"
    with pytest.raises(BadSample, match=expected):
        data.sample(0, 0, bucket)
    assert ea(["data", "doctor", str(tmp_path), "--json", "--workers", "1", "--batch-size", "1"]) == 1
    found = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert found["unreadable files"]["count"] == 1
    assert f"write '{right}' there" in found["unreadable files"]["files"][0]


@pytest.mark.skipif(not CASE.is_dir(), reason="the cases from the field are not next to the checkout")
def test_the_case_from_the_field(tmp_path: Path) -> None:
    shutil.copytree(CASE, tmp_path / "set")
    (tmp_path / "set").chmod(0o755)
    data = open_inline(tmp_path / "set")
    buckets = data.buckets()
    assert [bucket[:2] for bucket in buckets] == [("video", 9)] * 3
    for i, bucket in enumerate(buckets):
        frames = data.sample(i, 0, bucket).frames
        assert len(frames) == 9
        assert np.ptp(frames) > 50
