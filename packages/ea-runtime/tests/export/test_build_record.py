"""The record of this user's builds: what is added is known, and nothing else is."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.export import build_record

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def test_builds_are_known_by_their_hash_with_what_was_said(state: Path) -> None:
    assert build_record.entries() == []
    assert build_record.knows(A) is False
    build_record.add(A, how="built", bundle="x")
    build_record.add(B, how="accepted", model="größer")
    assert [build_record.knows(one) for one in (A, B, C, "", "A" * 64)] == [True, True, False, False, False]
    first, second = build_record.entries()
    assert {name: first[name] for name in ("sha256", "how", "bundle")} == {
        "sha256": A,
        "how": "built",
        "bundle": "x",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", first["date"])
    assert second["model"] == "größer"
    lines = (state / "builds.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [first, second]  # appended, one line each


def test_a_line_is_on_the_disk_when_it_was_added(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def fsync(handle: int) -> None:
        synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(build_record.os, "fsync", fsync)
    build_record.add(A)
    assert synced == [(state / "builds.jsonl").stat().st_size]
    assert synced[0] > 64


def test_what_cannot_be_read_grants_nothing(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_record.add(A)
    path = state / "builds.jsonl"
    for line in (
        "[1]",
        '"' + B + '"',
        '{"sha256": 7}',
        '{"other": "' + B + '"}',
        "{]",
        "[" * 100_000,
        "",
        "\xff\0",
    ):
        path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    build_record.add(C)
    assert [one["sha256"] for one in build_record.entries()] == [A, C]
    assert build_record.MAX_BYTES == 64 << 20
    monkeypatch.setattr(build_record, "MAX_BYTES", path.stat().st_size)
    assert build_record.knows(A)
    monkeypatch.setattr(build_record, "MAX_BYTES", path.stat().st_size - 1)
    assert build_record.entries() == []
    path.unlink()
    path.mkdir()
    assert build_record.entries() == []


def test_asking_if_it_can_be_written_changes_nothing(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EA_STATE_DIR", str(state / "deep" / "er"))
    build_record.require_writable()
    assert (state / "deep" / "er" / "builds.jsonl").read_bytes() == b""
    build_record.add(A)
    build_record.require_writable()
    assert build_record.knows(A)
    (state / "file").write_text("")
    monkeypatch.setenv("EA_STATE_DIR", str(state / "file"))
    line = r"the build record '.*builds\.jsonl' cannot be written \(.+\); set EA_STATE_DIR to a folder$"
    for call in (build_record.require_writable, lambda: build_record.add(A)):
        with pytest.raises(UserError, match=line):
            call()


def test_a_place_is_stripped_and_a_home_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("EA_STATE_DIR", " ~/own ")
    assert build_record.place() == tmp_path / "own" / "builds.jsonl"
    monkeypatch.setenv("EA_STATE_DIR", "  ")
    assert build_record.place().parent.name == "ea"
