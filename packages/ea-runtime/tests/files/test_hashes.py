"""Hashes of files and folders, by their definitions; those of large files cover size, beginning, middle and end."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from ea_runtime.files import hashes


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_folder_is_hashed_by_its_files_names_and_hashes(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c").write_bytes(b"one")
    assert hashes.file_hash(tmp_path / "b") == hashes.content_hash(tmp_path / "b") == sha256(b"two")
    inner = sha256(f"c {sha256(b'one')}\n".encode())
    assert hashes.content_hash(tmp_path) == sha256(f"a {inner}\nb {sha256(b'two')}\n".encode())


def test_a_file_over_256_kib_is_hashed_by_three_blocks_of_64(tmp_path: Path) -> None:
    """Ledgers hold these hashes: other ones would look at all files again."""
    path = tmp_path / "a.mp4"
    data = np.random.default_rng(0).integers(0, 256, (256 << 10) + 1, dtype=np.uint8).tobytes()
    for size in (0, 5, 256 << 10):
        path.write_bytes(data[:size])
        assert hashes.sampled_hash(path) == sha256(f"{size} ".encode() + data[:size])
    path.write_bytes(data)
    block, middle = 64 << 10, len(data) // 2 - (32 << 10)
    blocks = data[:block] + data[middle : middle + block] + data[-block:]
    assert hashes.sampled_hash(path) == sha256(f"{len(data)} ".encode() + blocks)


def test_a_large_file_is_hashed_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "WHOLE_BYTES", 4096)
    monkeypatch.setattr(hashes, "_BLOCK", 1024)
    path = tmp_path / "a.mp4"
    whole = np.random.default_rng(0).integers(0, 256, 10_000, dtype=np.uint8).tobytes()
    path.write_bytes(whole)
    first = hashes.sampled_hash(path)
    for place, is_seen in ((0, True), (1500, False), (5000, True), (9999, True)):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert (hashes.sampled_hash(path) != first) == is_seen
    path.write_bytes(whole + b"x")
    assert hashes.sampled_hash(path) != first
    path.write_bytes(b"")
    assert len(hashes.sampled_hash(path)) == 64
