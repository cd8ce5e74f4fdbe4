"""The list of a training set: what is read, and what is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ea_data.training.dataset_json import read_list
from ea_runtime.errors import UserError
from ea_runtime.training.data.dataset import Item

ROW: dict[str, Any] = {"file_path": "0.png", "text": "a circle", "type": "image", "width": 16, "height": 16}


def told(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, *rows: Any) -> Path:
    (folder / "dataset.json").write_text(json.dumps(list(rows)))
    return folder


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = read_list(
        write(tmp_path, ROW, {"file_path": "a/b.mp4", "text": "", "type": "video", "num_frames": 40})
    )
    assert len(entries) == 2
    assert (entries[0].path, entries[0].text, entries[0].is_video) == (tmp_path / "0.png", "a circle", False)
    assert (entries[1].path, entries[1].width, entries[1].is_video) == (tmp_path / "a/b.mp4", 0, True)
    assert entries.num_frames == [0, 40]
    assert [item.text for item in entries[0:2]] == ["a circle", ""]
    assert entries.take([1])[0] == entries[1]
    # the list by its name, and a separate root
    (tmp_path / "elsewhere").mkdir()
    assert (
        read_list(tmp_path / "dataset.json", tmp_path / "elsewhere")[0].path == tmp_path / "elsewhere/0.png"
    )
    monkeypatch.chdir(tmp_path)
    assert len(read_list(".")) == 2


def test_csv(tmp_path: Path) -> None:
    text = 'file_path,text,type,width,height\n0.png,"a circle, red",image,16,16\nb.mp4,moves,video,,\n'
    (tmp_path / "dataset.csv").write_text(text)
    entries = read_list(tmp_path)
    assert entries[0].text == "a circle, red"
    assert (entries[1].is_video, entries[1].width) == (True, 0)
    (tmp_path / "list.csv").write_text("file_path,type\n0.png,image\n")
    error = told(lambda: read_list(tmp_path / "list.csv"))
    assert "line 1: must name the columns file_path and text" in error
    assert "got 'file_path,type'" in error


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "/etc/hostname",
        "/0.png",
        "a/../../secret.png",
        "link.png",
        "folder/secret.png",
        ".",
        "",
        "a\0b",
        "loop",
        "http://host/a.mp4",
        "file:///etc/hostname",
    ],
)
def test_paths_that_leave_the_set_are_refused(path: str, tmp_path: Path) -> None:
    """Also through links. The error names the entry."""
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to("../secret.png")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    text = told(lambda: read_list(write(folder, ROW, {**ROW, "file_path": path})))
    assert text.startswith("entry 1 of ")
    assert "`file_path` must " in text


def test_links_within_the_set_are_followed(tmp_path: Path) -> None:
    (tmp_path / "0.png").touch()
    (tmp_path / "link.png").symlink_to("0.png")
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to("real")
    rows = [{**ROW, "file_path": "link.png"}, {**ROW, "file_path": "folder/0.png"}]
    assert len(read_list(write(tmp_path, *rows))) == 2


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
        ({**ROW, "width": True}, "`width` must be a number of pixels, got True"),
        ({**ROW, "width": float("nan")}, "`width` must be a number of pixels, got nan"),
        ({**ROW, "num_frames": "many"}, "`num_frames` must be a number of frames, got 'many'"),
        ({**ROW, "width": 1 << 20}, "`width` must be a number of pixels, got 1048576"),
        ({**ROW, "num_frames": 1 << 30}, "`num_frames` must be a number of frames, got 1073741824"),
        ({**ROW, "width": [16]}, "`width` must be a number of pixels, got [16]"),
        ({**ROW, "given": "end"}, "`given` must be 'start' or 'ends', or left out, got 'end'"),
        ({**ROW, "file_path": "a/../0.png"}, "`file_path` must stay beneath the set's folder"),
        ({**ROW, "file_path": "C:/a.png"}, "`file_path` must stay beneath the set's folder"),
    ],
)
def test_wrong_entries(row: Any, expected: str, tmp_path: Path) -> None:
    text = told(lambda: read_list(write(tmp_path, ROW, row)))
    assert text.startswith("entry 1 of ")
    assert "line 1: " in text
    assert expected in text
    assert len(text) < 500


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
    assert expected in told(lambda: read_list(tmp_path))


def test_no_set_there(tmp_path: Path) -> None:
    assert "make one with `ea data run` or `ea data draw`" in told(lambda: read_list(tmp_path))
    assert "make one with `ea data run` or `ea data draw`" in told(lambda: read_list(tmp_path / "nowhere"))
    (tmp_path / "file.txt").touch()
    assert "`data.path` must be a folder or a list (.json, .csv" in told(
        lambda: read_list(tmp_path / "file.txt")
    )
    (tmp_path / "dataset.json").mkdir()
    assert "cannot be read: Is a directory" in told(lambda: read_list(tmp_path))
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "dataset.json").write_bytes(b'["\xe9"]')
    assert "is not valid JSON" in told(lambda: read_list(tmp_path / "latin"))
    write(tmp_path / "latin", ROW)
    assert "`data.root` must be a folder" in told(lambda: read_list(tmp_path / "latin", tmp_path / "none"))


def test_every_column_is_read_and_taken_along(tmp_path: Path) -> None:
    rows = [
        {**ROW, "width": (1 << 20) - 1, "height": "32.0", "num_frames": (1 << 30) - 1, "given": "start"},
        {**ROW, "file_path": "a.mp4", "type": " Video", "width": 0, "height": " ", "given": "ends"},
        {**ROW, "file_path": "b.png", "type": None, "width": None, "given": None},
    ]
    entries = read_list(write(tmp_path, *rows))
    columns = ("names", "texts", "videos", "widths", "heights", "num_frames", "typed", "given")
    found = [[getattr(entries, name)[row] for name in columns] for row in range(3)]
    assert found == [
        ["0.png", "a circle", False, (1 << 20) - 1, 32, (1 << 30) - 1, True, "start"],
        ["a.mp4", "a circle", True, 0, 0, 0, True, "ends"],
        ["b.png", "a circle", False, 0, 16, 0, False, ""],
    ]
    assert all(type(value) is int for value in (*entries.widths, *entries.heights, *entries.num_frames))
    taken = entries.take([2, 0])
    assert [[getattr(taken, name)[row] for name in columns] for row in range(2)] == [found[2], found[0]]
    assert taken.root == entries.root == tmp_path
    assert not hasattr(entries, "__dict__")
    assert entries[0] == Item(tmp_path / "0.png", "a circle", False, (1 << 20) - 1, 32, "start")


def test_of_several_lists_in_a_folder_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "dataset.jsonl").write_text(json.dumps({**ROW, "text": "lines"}))
    assert read_list(tmp_path).texts == ["lines"]
    (tmp_path / "dataset.csv").write_text("file_path,text\n0.png,csv\n")
    assert read_list(tmp_path).texts == ["csv"]
    write(tmp_path, {**ROW, "text": "json"})
    assert read_list(tmp_path).texts == ["json"]


@pytest.mark.parametrize("error", [OSError(40, "Too many levels"), RuntimeError("Symlink loop")])
def test_a_folder_that_cannot_be_followed_is_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A loop of links raises one or the other, by the version of Python."""
    (tmp_path / "loop").symlink_to("loop")
    write(tmp_path, {**ROW, "file_path": "loop/0.png"})
    real = Path.resolve

    def resolve(path: Path, strict: bool = False) -> Path:
        if path.name == "loop":
            raise error
        return real(path, strict)

    monkeypatch.setattr(Path, "resolve", resolve)
    assert "must stay beneath the set's folder" in told(lambda: read_list(tmp_path))


def test_each_folder_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of millions: one look for each folder, and none for a file that is no link."""
    seen: list[Path] = []
    real = Path.resolve
    write(
        tmp_path, *({**ROW, "file_path": f"{folder}/{number}.png"} for folder in "ab" for number in range(3))
    )
    monkeypatch.setattr(
        Path, "resolve", lambda path, strict=False: (seen.append(path), real(path, strict))[1]
    )
    assert len(read_list(tmp_path)) == 6
    assert [path.name for path in seen if path.parent == tmp_path] == ["a", "b"]
    assert not [path for path in seen if path.suffix == ".png"]


@pytest.mark.parametrize("blank", ["", " ", None])
def test_a_type_may_be_left_blank(tmp_path: Path, blank: str | None) -> None:
    entries = read_list(write(tmp_path, {**ROW, "type": blank}, {**ROW, "file_path": "a.mp4", "type": blank}))
    assert (entries.videos, entries.typed) == ([False, True], [False, False])
