"""The captioners that read files, and the tidying of captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ea_data.caption.words import tidy
from ea_data.components import make
from ea_runtime.errors import UserError


def record(path: Path, start: float = 0.0, end: float = 4.0) -> dict[str, Any]:
    return {"clip_id": "c1", "path": str(path), "start": start, "end": end}


def test_folder_reads_the_text_next_to_the_video(tmp_path: Path) -> None:
    (tmp_path / "a.b.txt").write_text("\ufeff  A red\n circle.  ", encoding="utf-8")
    caption = make("captioners", "folder")(None, record(tmp_path / "a.b.mp4"))
    assert (caption.text, caption.model, caption.prompt_hash) == ("A red circle.", "folder", "")


@pytest.mark.parametrize(
    "name", ["a.txt", "a.TXT", "a.Txt", "a.caption", "a.CAPTION", "a.png.txt", "a.png.TXT", "a.png.caption"]
)
def test_folder_finds_the_names_that_tools_give(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a red thing")
    assert make("captioners", "folder")(None, record(tmp_path / "a.png")).text == "a red thing"
    other = make("captioners", "folder", {"suffix": ".cap"})
    with pytest.raises(UserError, match=r"there is no caption .*a\.cap"):
        other(None, record(tmp_path / "a.png"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_folder_reads_what_editors_write(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("un café\r\nrouge\u2028vif\r\n".encode(encoding))
    assert make("captioners", "folder")(None, record(tmp_path / "a.mp4")).text == "un café rouge vif"
    (tmp_path / "a.txt").write_bytes(b"un caf\xe9 rouge")
    with pytest.raises(UserError, match=r"a\.txt' cannot be read as text: line 1 is not UTF-8 text"):
        make("captioners", "folder")(None, record(tmp_path / "a.mp4"))


def test_folder_without_a_text_is_an_error_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no caption .*a\.txt"):
        make("captioners", "folder")(None, record(tmp_path / "a.mp4"))
    assert (
        make("captioners", "folder", {"missing_text": "empty"})(None, record(tmp_path / "a.mp4")).text == ""
    )


def test_folder_follows_no_link_out_of_its_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a key")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").symlink_to(secret)
    with pytest.raises(UserError, match="leads out of its folder") as told:
        make("captioners", "folder")(None, record(tmp_path / "raw" / "a.mp4"))
    assert "a key" not in str(told.value)


@pytest.mark.parametrize(("content", "told"), [(b"\xff\xfe\x00", "UTF-8"), (b"x" * (2 << 20), "too long")])
def test_folder_refuses_what_is_no_caption(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=told):
        make("captioners", "folder")(None, record(tmp_path / "a.mp4"))


def write_truth(folder: Path) -> None:
    scenes = [
        {"start_frame": 0, "end_frame": 96, "caption": "first"},
        {"start_frame": 96, "end_frame": 200, "caption": "second"},
    ]
    lines = [
        {"file_path": "clips/0.mp4", "caption": "one", "fps": 12},
        {"file_path": "raw.mp4", "caption": "first", "fps": 24, "scenes": scenes},
    ]
    (folder / "truth.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")


def test_draw_knows_what_was_drawn(tmp_path: Path) -> None:
    write_truth(tmp_path)
    caption = make("captioners", "draw")
    assert caption(None, record(tmp_path / "clips" / "0.mp4")).text == "one"
    assert caption(None, record(tmp_path / "raw.mp4", 0.0, 4.0)).text == "first"
    assert caption(None, record(tmp_path / "raw.mp4", 3.9, 8.0)).text == "second"
    with pytest.raises(UserError, match=r"is in no truth\.jsonl"):
        caption(None, record(tmp_path / "other.mp4"))
    (tmp_path / "truth.jsonl").write_text("{")
    with pytest.raises(UserError, match="cannot be read as the truth"):
        caption(None, record(tmp_path / "raw.mp4"))


def test_none_says_nothing() -> None:
    assert make("captioners", "none")(None, {}).text == ""


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("  a\n b ", 0, "a b"),
        ('"A cat."', 0, "A cat."),
        ('"A" and "B"', 0, '"A" and "B"'),
        ("One two. Three four five.", 4, "One two."),
        ("one two three", 2, "one two"),
        ("", 0, ""),
    ],
)
def test_tidy(text: str, words: int, expected: str) -> None:
    assert tidy(text, words) == expected
