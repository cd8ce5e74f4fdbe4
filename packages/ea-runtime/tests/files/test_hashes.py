"""Hashes of large files cover their size, beginning, middle and end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ea_runtime.files import hashes


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
