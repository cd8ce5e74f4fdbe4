"""Text files as editors on every system write them."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from ea_runtime.files.safe import read_json
from ea_runtime.files.texts import decode_text, lines_of, read_text


@pytest.mark.parametrize(
    "data",
    [
        "café\n".encode(),
        codecs.BOM_UTF8 + "café\n".encode(),
        codecs.BOM_UTF16_LE + "café\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "café\n".encode("utf-16-be"),
    ],
)
def test_marks_at_the_beginning_are_read_over(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt") == "café\n"


def test_other_encodings_are_told_with_their_line() -> None:
    with pytest.raises(ValueError, match="line 2 is not UTF-8 text; save the file as UTF-8"):
        decode_text(b"one\nun caf\xe9 rouge\n")
    with pytest.raises(ValueError, match="line 2 is not UTF-8"):
        decode_text(b"\n\xe9")
    with pytest.raises(ValueError, match="line 2 holds zero bytes"):
        decode_text(b"\n\0")
    with pytest.raises(ValueError, match="UTF-8"):
        decode_text(codecs.BOM_UTF16_LE + b"a")


@pytest.mark.parametrize("data", ["a\n".encode("utf-16-le"), "a\n".encode("utf-32"), b"a\0b", b"\0"])
def test_wide_text_without_a_mark_is_told(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"line 1 holds zero bytes, .*; save the file as UTF-8"):
        decode_text(data)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\nb\n", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\n\nb", ["a", "", "b"]),
        ("a\u2028b\x0cc\x85d\u2029e\x1cf\ng", ["a\u2028b\x0cc\x85d\u2029e\x1cf", "g"]),
        ("a\rb\n", ["a\rb"]),
        ("a\rb\r", ["a", "b"]),
    ],
)
def test_lines_are_those_that_editors_show(text: str, lines: list[str]) -> None:
    assert lines_of(text) == lines


def test_a_models_json_may_begin_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(codecs.BOM_UTF8 + b'{"a": 1}')
    assert read_json(tmp_path, "config.json") == {"a": 1}
