"""Only a user's own, unchanged bundles are opened, and nothing outside of them (RELIABILITY row 15)."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ea_runtime.cli.main import run
from ea_runtime.errors import UserError
from ea_runtime.export import build_record, bundle
from ea_runtime.export.bundle import inspect_bundle, open_bundle


class Watch:
    """Paths that Python opens while the hook listens; audit hooks cannot be removed."""

    def __init__(self) -> None:
        self.opened: list[str] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.opened is not None and event == "open" and isinstance(args[0], (str, bytes)):
            self.opened.append(os.path.abspath(os.fsdecode(args[0])))

    @contextmanager
    def outside(self, *allowed: Path) -> Iterator[list[str]]:
        """A list, filled at exit with opened paths that are neither below `allowed` nor part of Python's
        installation."""
        found: list[str] = []
        self.opened = []
        try:
            yield found
        finally:
            places = (
                *map(str, allowed),
                sys.prefix,
                sys.base_prefix,
                str(Path(__file__).resolve().parents[3]),
            )
            found += [path for path in self.opened if not path.startswith(places)]
            self.opened = None


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def record(manifest: bytes) -> None:
    build_record.add(hashlib.sha256(manifest).hexdigest(), how="built")


def test_a_bundle_of_ones_own_is_opened(bundles: ModuleType, tmp_path: Path) -> None:
    record(bundles.write(tmp_path / "good"))
    opened = open_bundle(tmp_path / "good", "onnx")
    assert (opened.parts, opened.graphs[0].inputs[0].shape, opened.size.words()) == (
        ("dit",),
        (16,),
        "a picture of 1x1",
    )
    with pytest.raises(UserError, match="was made for engine 'onnx', got 'trt'"):
        open_bundle(tmp_path / "good", "trt")


def test_a_hundred_crafted_bundles_are_refused(
    bundles: ModuleType, tmp_path: Path, watch: Watch, state: Path
) -> None:
    """All are in the build record, as if their author had got that far: the second line of defence holds by itself."""
    (tmp_path / bundles.OUTSIDE).write_text("nobody reads this")
    cases = list(bundles.crafted(tmp_path))
    assert len(cases) >= 100
    accepted, leaked, messages = [], [], []
    for number, (name, make) in enumerate(cases):
        folder = tmp_path / "crafted" / str(number)
        make(folder)
        if (folder / "manifest.json").is_file() and not (folder / "manifest.json").is_symlink():
            record((folder / "manifest.json").read_bytes())
        with watch.outside(folder, state) as outside:
            try:
                open_bundle(folder)
                accepted.append(name)
            except UserError as error:
                messages.append(str(error))
        leaked += [f"{name}: {path}" for path in outside]
    assert not accepted
    assert not leaked
    assert all("\n" not in message for message in messages)


def test_a_hundred_unknown_bundles_are_refused_unread(
    bundles: ModuleType, tmp_path: Path, watch: Watch, state: Path
) -> None:
    for number in range(100):
        folder = tmp_path / "unknown" / str(number)
        bundles.write(folder, described=bundles.description(model=f"model {number}"))
        with (
            watch.outside(folder / "manifest.json", state) as read,
            pytest.raises(UserError, match="build record"),
        ):
            open_bundle(folder)
        assert not read, "no file but the manifest is opened"


def test_without_the_checks_crafted_bundles_get_in(
    bundles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "check_graph", lambda folder, graph: None)
    (tmp_path / bundles.OUTSIDE).write_text("x")
    manifest = bundles.write(tmp_path / "evil", bundles.graph_with(f"../{bundles.OUTSIDE}"))
    record(manifest)
    assert open_bundle(tmp_path / "evil").target == "onnx"


def test_accepting_takes_a_bundle_from_elsewhere(
    bundles: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundles.write(tmp_path / "other")
    assert run(["bundles", "check", str(tmp_path / "other")]) == 2
    assert "ea bundles accept" in capsys.readouterr().err
    assert run(["bundles", "accept", "--yes", str(tmp_path / "other")]) == 0
    assert run(["bundles", "check", str(tmp_path / "other")]) == 0
    assert "dit: x [16] float32" in capsys.readouterr().out
    assert run(["bundles", "list"]) == 0
    assert "accepted  onnx  tiny" in capsys.readouterr().out
    bundles.write(tmp_path / "evil", bundles.graph_with("/etc/passwd"))
    assert run(["bundles", "accept", "--yes", str(tmp_path / "evil")]) == 2


def test_what_is_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match="bundle"):
            inspect_bundle(folder)


def test_lines_of_the_record_that_cannot_be_read_grant_nothing(state: Path) -> None:
    build_record.add("a" * 64, how="built")
    with (state / "builds.jsonl").open("a") as file:
        file.write('{"sha256": "' + "b" * 64 + '"\n[1]\n{"sha256": 7}\n\0\n')
    build_record.add("c" * 64, how="built")
    assert [build_record.knows(letter * 64) for letter in "abc"] == [True, False, True]


def test_a_record_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EA_STATE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="EA_STATE_DIR"):
        build_record.require_writable()


def test_the_record_is_in_ea_state_dir_or_the_users_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EA_STATE_DIR", str(tmp_path))
    assert build_record.place() == tmp_path / "builds.jsonl"
    monkeypatch.delenv("EA_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert build_record.place() == tmp_path / "ea" / "builds.jsonl"
