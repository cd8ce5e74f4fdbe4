"""Facts about files that hold as long as size and time stay the same."""

from __future__ import annotations

import os
from pathlib import Path

from ea_runtime.files.remembered import Remembered


def remember(root: Path) -> None:
    (root / "a.png").write_bytes(b"one")
    table = Remembered(root, "facts", 1)
    table.put("a.png", "hash of one")
    table.save()


def test_a_file_of_equal_size_a_moment_later_is_another(tmp_path: Path) -> None:
    """One that is written within the same second, even the same microsecond, has another time in nanoseconds."""
    remember(tmp_path)
    assert Remembered(tmp_path, "facts", 1).get("a.png") == "hash of one"
    before = (tmp_path / "a.png").stat()
    (tmp_path / "a.png").write_bytes(b"two")
    os.utime(tmp_path / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns ^ 256))
    assert Remembered(tmp_path, "facts", 1).get("a.png") is None
    os.utime(tmp_path / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert Remembered(tmp_path, "facts", 1).get("a.png") == "hash of one"


def test_what_is_not_known(tmp_path: Path) -> None:
    """Another size, another version of the values, a file that is gone, a damaged table."""
    remember(tmp_path)
    stamp = (tmp_path / "a.png").stat().st_mtime_ns
    assert Remembered(tmp_path, "facts", 2).get("a.png") is None
    (tmp_path / "a.png").write_bytes(b"three")
    os.utime(tmp_path / "a.png", ns=(stamp, stamp))
    table = Remembered(tmp_path, "facts", 1)
    assert table.get("a.png") is None
    (tmp_path / "a.png").unlink()
    assert table.get("a.png") is None
    (tmp_path / "cache" / "facts.json").write_text('{"version": 1, "files": {"a.png": 5}}')
    assert Remembered(tmp_path, "facts", 1).get("a.png") is None


def test_a_cache_folder_that_leads_out_of_the_set_is_not_written(tmp_path: Path) -> None:
    root, outside = tmp_path / "set", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "cache").symlink_to(outside)
    remember(root)
    assert list(outside.iterdir()) == []
