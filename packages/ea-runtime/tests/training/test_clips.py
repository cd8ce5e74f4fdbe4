"""Training sets: what is read, and what is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ea_runtime.errors import UserError
from ea_runtime.training.clips import ClipSet, read_items, to_float

MakeSet = Callable[..., Path]
ROW: dict[str, Any] = {"file_path": "0.png", "text": "a circle", "type": "image", "width": 16, "height": 16}


def told(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, *rows: Any) -> Path:
    (folder / "dataset.json").write_text(json.dumps(list(rows)))
    return folder


def test_a_set_of_pictures_and_clips(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_set(pictures=2, videos=1)
    clips = ClipSet(folder)
    assert len(clips) == 3
    assert [item.is_video for item in clips.items] == [False, False, True]
    assert (clips.items[2].text, clips.items[2].width, clips.items[2].height) == ("clip 2", 16, 16)
    assert clips.frames(0).shape == (1, 16, 16, 3)
    assert clips.frames(2).shape == (9, 16, 16, 3)
    assert clips.frames(2).dtype == np.uint8
    assert np.array_equal(clips.frames(0)[0], np.asarray(Image.open(folder / "0.png").convert("RGB")))
    assert clips.choose("both") == [0, 1, 2]
    assert clips.choose("videos") == [2]
    assert clips.choose("pictures") == [0, 1]
    # decoded once
    (folder / "0.png").unlink()
    assert clips.frames(0).shape == (1, 16, 16, 3)


def test_what_is_kept_is_bounded(make_set: MakeSet) -> None:
    clips = ClipSet(make_set(pictures=3, videos=0), keep_bytes=16 * 16 * 3 * 2)
    kept = [clips.frames(i) is clips.frames(i) for i in range(3)]
    assert kept == [True, True, False]


def test_a_relative_folder(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_set().parent)
    assert len(read_items(Path("set"))) == 5


def test_no_kind_of_it(make_set: MakeSet) -> None:
    clips = ClipSet(make_set(videos=0))
    assert "`data.kinds` is 'videos', but" in told(lambda: clips.choose("videos"))


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "/etc/hostname",
        "a/../../secret.png",
        "link.png",
        "folder/secret.png",
        ".",
        "",
        "a\0b",
    ],
)
def test_paths_that_leave_the_set_are_refused(path: str, make_set: MakeSet) -> None:
    """Also through links. The entry's number is told, and nothing outside is opened."""
    folder = make_set()
    secret = folder.parent / "secret.png"
    secret.write_bytes((folder / "0.png").read_bytes())
    (folder / "link.png").symlink_to(secret)
    (folder / "folder").symlink_to(folder.parent)
    write(folder, ROW, {**ROW, "file_path": path})
    text = told(lambda: ClipSet(folder))
    assert text.startswith("entry 1 of ")
    assert "`file_path` must " in text


def test_links_within_the_set_are_followed(make_set: MakeSet) -> None:
    folder = make_set()
    (folder / "link.png").symlink_to("0.png")
    assert ClipSet(write(folder, {**ROW, "file_path": "link.png"})).frames(0).shape == (1, 16, 16, 3)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([], "must be an object, got list"),
        ({"file_path": "0.png"}, "`text` must be a string, got nothing"),
        ({**ROW, "text": None}, "`text` must be a string, got None"),
        ({**ROW, "file_path": 3}, "`file_path` must be a string, got 3"),
        ({"text": "a"}, "`file_path` must be a string, got nothing"),
        ({**ROW, "type": "sound"}, "`type` must be 'image' or 'video', got 'sound'"),
        ({**ROW, "type": ["x"] * 999}, "`type` must be 'image' or 'video', got ['x'"),
        ({**ROW, "width": "wide"}, "`width` must be a number of pixels, got 'wide'"),
        ({**ROW, "height": -1}, "`height` must be a number of pixels, got -1"),
    ],
)
def test_wrong_entries(row: Any, expected: str, tmp_path: Path) -> None:
    text = told(lambda: read_items(write(tmp_path, ROW, row)))
    assert text.startswith("entry 1 of ")
    assert expected in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", "must be a list of entries, got an empty list"),
        ("{}", "must be a list of entries, got dict"),
        ('[{"file_path": ', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
)
def test_wrong_lists(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(text)
    assert expected in told(lambda: read_items(tmp_path))


def test_no_set_there(tmp_path: Path) -> None:
    assert "make one with `ea data draw`" in told(lambda: read_items(tmp_path))
    (tmp_path / "file").touch()
    assert "make one with `ea data draw`" in told(lambda: read_items(tmp_path / "file"))
    (tmp_path / "dataset.json").mkdir()
    assert "cannot be read: Is a directory" in told(lambda: read_items(tmp_path))
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "dataset.json").write_bytes(b'["\xe9"]')
    assert "is not valid JSON" in told(lambda: read_items(tmp_path / "latin"))


def test_files_that_do_not_decode(make_set: MakeSet) -> None:
    folder = make_set(pictures=1, videos=0)
    rows = [{**ROW, "file_path": name} for name in ("gone.png", "noise.png", "noise.mp4", "empty.png", "dir")]
    (folder / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (folder / "noise.mp4").write_bytes(bytes(1000))
    (folder / "empty.png").touch()
    (folder / "dir").mkdir()
    (folder / "dir" / "0.png").write_bytes((folder / "0.png").read_bytes())
    clips = ClipSet(write(folder, *rows, {**ROW, "width": 32}))
    for index, row in enumerate(rows):
        assert told(lambda i=index: clips.frames(i)).startswith(f"{row['file_path']} of ")
    assert "0.png of " in told(lambda: clips.frames(5))
    assert "is 16x16, but dataset.json says 32x16; correct its entry" in told(lambda: clips.frames(5))


def test_to_float() -> None:
    clip = np.zeros((2, 3, 4, 3), dtype=np.uint8)
    clip[1, 2, 3] = (255, 127, 128)
    values = to_float([clip, clip])
    assert values.shape == (2, 3, 2, 3, 4)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    assert values.min() == -1.0
    assert values[0, :, 1, 2, 3] == pytest.approx([1.0, -0.00392157, 0.00392157], abs=1e-6)
    text = told(lambda: to_float([clip, clip[:1]]))
    assert "must be of one size, got 1 frames of 4x3 and 2 of 4x3" in text
