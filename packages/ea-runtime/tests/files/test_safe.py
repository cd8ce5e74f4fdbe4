"""Names and small files of a folder that may be hostile: what is refused, and what is read."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_runtime.errors import UserError
from ea_runtime.files.safe import (
    MAX_INDEX_BYTES,
    inside,
    is_file,
    plain,
    quote,
    quote_path,
    read_json,
    real_path,
)

NAMES = ("a.json", "vae/config.json", "..a", "a..", "a b", "ä/红", "...", "a/...", "~", "%2e%2e", "-rf")
BAD_NAMES = (
    *("", "/", "/etc/passwd", "//a", "a//b", "a/", ".", "..", "./a", "../a", "a/./b", "a/../b", "a/.."),
    *("\\", "a\\b", "..\\a", "\\\\host\\share", "C:", "C:a", "C:\\a", "a:b", "file:a", "\0", "a\0", "a/\0b"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_below_the_folder_is_taken(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path.resolve() / name


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_any_other_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="must be a relative path without") as error:
        inside(tmp_path, name)
    assert "\n" not in str(error.value)
    assert quote(name) in str(error.value)
    assert quote_path(tmp_path) in str(error.value)


@settings(derandomize=True, deadline=None)
@given(st.text(st.sampled_from("./\\:\0aB~ "), max_size=12))
def test_no_name_leads_out(name: str) -> None:
    """Any name is refused, or leads to a place below the folder that its parts spell."""
    folder = Path("/no/such/folder")
    try:
        found = inside(folder, name)
    except UserError:
        return
    assert found.relative_to(folder).parts == tuple(name.split("/"))
    assert not {"", ".", ".."} & set(name.split("/"))
    assert not set(name) & set("\\:\0")


def test_links_are_followed_only_below_the_folder(tmp_path: Path) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret"
    (folder / "part").mkdir(parents=True)
    secret.write_text("{}")
    (folder / "real").write_text("{}")
    (folder / "near").symlink_to("real")
    (folder / "part" / "up").symlink_to("../real")
    (folder / "self").symlink_to(folder)
    for name in ("near", "part/up", "self/real"):
        assert inside(folder, name) == (folder / "real").resolve()
    assert inside(folder, "self") == folder.resolve()
    for number, target in enumerate((secret, tmp_path, "/", "../secret", tmp_path / "model-2")):
        (folder / f"out{number}").symlink_to(target)
        with pytest.raises(UserError, match="is a link that leaves the folder; replace it by a copy"):
            inside(folder, f"out{number}")
    (folder / "away").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leaves the folder"):
        inside(folder, "away/secret")
    (folder / "loop").symlink_to("loop")
    for name in ("loop", "loop/config.json"):
        with pytest.raises(UserError, match="cannot be followed"):
            read_json(folder, name)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_loop_of_links_is_an_error_in_every_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """leaves: as from Python 3.13 on, Path.resolve leaves the loop in the path; before it raises RuntimeError."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert real_path(tmp_path / "link") == tmp_path.resolve() / "file"
    assert real_path(tmp_path / "none") == tmp_path.resolve() / "none"
    if leaves:
        monkeypatch.setattr(Path, "resolve", Path.absolute)
    for name in ("loop", "loop/a"):
        with pytest.raises(OSError, match=r"loop|Too many levels") as caught:
            real_path(tmp_path / name)
        assert caught.value.errno == errno.ELOOP


def test_a_folder_that_is_a_loop_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path.resolve raises OSError for what cannot be looked at."""
    for kind in (RuntimeError("Symlink loop"), OSError("denied")):

        def resolve(path: Path, error: Exception = kind) -> Path:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Path, "resolve", resolve)
            with pytest.raises(UserError, match=r"'a' in model folder .* cannot be followed: "):
                inside(tmp_path, "a")


def test_files_of_a_hugging_face_cache_are_inside(tmp_path: Path) -> None:
    """Links into `blobs` next to `snapshots`, and nowhere else of the cache."""
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1f").write_text("{}")
    (tmp_path / "refs").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1f")
    (snapshot / "refs.json").symlink_to("../../refs")
    assert inside(snapshot, "config.json") == (blobs / "1f").resolve()
    assert read_json(snapshot, "config.json") == {}
    with pytest.raises(UserError, match="leaves the folder"):
        inside(snapshot, "refs.json")
    # `blobs` next to any other folder is outside
    other = tmp_path / "copies" / "abc"
    other.mkdir(parents=True)
    (other / "config.json").symlink_to("../../blobs/1f")
    with pytest.raises(UserError, match="leaves the folder"):
        inside(other, "config.json")


def test_only_regular_files_are_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert is_file(tmp_path / "file")
    for other in (tmp_path, tmp_path / "none", tmp_path / "a\0b"):
        assert is_file(other) is False
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert not is_file(tmp_path / "pipe")
        with pytest.raises(UserError, match=r"'pipe' in model folder .* is missing or no regular file"):
            read_json(tmp_path, "pipe")


def test_json_up_to_its_limit_is_read(tmp_path: Path) -> None:
    text = json.dumps({"a": [1, "ü"]}, ensure_ascii=False).encode()
    (tmp_path / "a.json").write_bytes(text)
    assert read_json(tmp_path, "a.json", limit=len(text)) == {"a": [1, "ü"]}
    with pytest.raises(UserError, match=f"has {len(text)} bytes, more than the {len(text) - 1} such a file"):
        read_json(tmp_path, "a.json", limit=len(text) - 1)
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + text)
    assert read_json(tmp_path, "marked.json") == {"a": [1, "ü"]}
    large = b'{"a": "' + b"x" * ((1 << 20) - 9) + b'"}'
    assert len(large) == 1 << 20
    (tmp_path / "large.json").write_bytes(large)
    assert len(read_json(tmp_path, "large.json")["a"]) == (1 << 20) - 9
    (tmp_path / "large.json").write_bytes(large + b" ")
    with pytest.raises(UserError, match="1,048,577 bytes, more than the 1,048,576"):
        read_json(tmp_path, "large.json")


def test_an_index_may_have_16_mib(tmp_path: Path) -> None:
    with (tmp_path / "a.index.json").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(UserError, match="16,777,217 bytes, more than the 16,777,216"):
        read_json(tmp_path, "a.index.json", limit=MAX_INDEX_BYTES)


def test_a_file_that_grows_meanwhile_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit holds for the bytes that are read, too, not only for the size seen before."""
    (tmp_path / "a.json").write_bytes(b'{"a": 1}' + b" " * 100)
    real = Path.stat
    small = (tmp_path / "small").write_bytes(b"") or real(tmp_path / "small")
    monkeypatch.setattr(
        Path, "stat", lambda path, **more: small if path.name == "a.json" else real(path, **more)
    )
    with pytest.raises(UserError, match="is no valid JSON"):
        read_json(tmp_path, "a.json", limit=7)
    assert read_json(tmp_path, "a.json", limit=8) == {"a": 1}


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a": 1}x'], ids=len)
def test_what_is_no_json_is_one_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(UserError, match=r"'a\.json' in model folder .* is no valid JSON") as error:
        read_json(tmp_path, "a.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "kind"), [("[]", "list"), ("1", "int"), ("null", "NoneType"), ('"a"', "str")]
)
def test_json_that_is_no_object_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=f"must hold a JSON object, got '{kind}'"):
        read_json(tmp_path, "a.json")


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("{}")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"'a\.json' in model folder .* cannot be read: Permission denied"):
        read_json(tmp_path, "a.json")


def test_quoted_text_is_escaped_and_cut() -> None:
    assert quote("a\x1b[31m\n‮") == "'a\\x1b[31m\\n\\u202e'"
    assert quote("x" * 78) == f"'{'x' * 78}'"
    assert quote("x" * 79) == f"'{'x' * 76}..."
    assert quote("abcdef", limit=8) == "'abcdef'"
    assert quote("abcdefg", limit=8) == "'abcd..."
    assert quote_path(Path("/" + "x" * 397)) == f"'/{'x' * 397}'"
    assert quote_path("x" * 399) == f"'{'x' * 396}..."


def test_plain_text_is_one_printable_line_and_cut() -> None:
    assert plain("a\x1b[31m‮b\tc") == "a?[31m?b?c"
    assert plain("first\nsecond") == "first"
    assert plain("") == ""
    assert plain(ValueError("no good\nat all")) == "no good"
    assert plain("x" * 80) == "x" * 80
    assert plain("x" * 81) == f"{'x' * 77}..."
