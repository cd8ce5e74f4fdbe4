"""TOML as editors on every system write it, and Windows paths in it."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.settings import read_toml

TEXT = '[data]\npath = "café"\n[train]\nsteps = 6\n'


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        TEXT.replace("\n", "\r\n").encode(),
        codecs.BOM_UTF8 + TEXT.replace("\n", "\r\n").encode(),
    ],
)
def test_marks_and_line_ends(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(data)
    assert read_toml(tmp_path / "a.toml", "config") == {"data": {"path": "café"}, "train": {"steps": 6}}


def refused(folder: Path, text: str) -> str:
    (folder / "a.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_toml(folder / "a.toml", "config")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", ["C:\\Users\\me", "sets\\images", "D:\\x\\set", "runs\\inks\\"])
def test_backslashes_that_are_no_toml(path: str, tmp_path: Path) -> None:
    error = refused(tmp_path, f'[run]\nrecipe = "lora"\n[data]\npath = "{path}"\n')
    assert "line 4" in error or "end of document" in error or "line 5" in error
    if not path.endswith("\\"):
        assert "between single quotes: 'C:\\set'" in error


@pytest.mark.parametrize("path", ["C:\\train\\new", "runs\\new", "sets\\farben", "data\\ball"])
def test_backslashes_that_are_other_toml(path: str, tmp_path: Path) -> None:
    """Escapes of tab, line feed, form feed and backspace would change the path."""
    for table, key in (("data", "path"), ("run", "out"), ("init", "folder"), ("data", "cache_folder")):
        error = refused(tmp_path, f'[{table}]\n{key} = "{path}"\n')
        assert f"`{table}.{key}`" in error
        assert "between single quotes: 'C:\\set'" in error
    (tmp_path / "a.toml").write_text(f"[data]\npath = '{path}'\ntext = \"a\\nb\"\n")
    assert read_toml(tmp_path / "a.toml", "config")["data"] == {"path": path, "text": "a\nb"}


def test_other_mistakes_get_no_hint(tmp_path: Path) -> None:
    assert "single quotes" not in refused(tmp_path, "[run]\nrecipe = \n")
    assert "single quotes" not in refused(tmp_path, "path = 'C:\\set'\na = \n")
