"""Checkpoints: complete or absent, whatever ends the save."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ea_runtime.errors import UserError
from ea_runtime.files import atomic
from ea_runtime.files.atomic import atomic_file, atomic_folder, new_folder, remove_partials, require_space
from ea_runtime.training.run.checkpoints import is_complete, newest_complete, prune

PROGRAM = Path(__file__).parent / "killed_saves.py"


def save(run: Path, step: int, text: str = "weights") -> Path:
    with atomic_folder(run / f"checkpoint-{step}") as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(text)
        (folder / "state.json").write_text(f"{step}")
    return run / f"checkpoint-{step}"


def killed(folder: Path, writer: str, kind: str, number: int) -> list[dict[str, Any]]:
    words = [sys.executable, str(PROGRAM), str(folder), writer, kind, str(number)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=170, check=True)
    return json.loads(done.stdout)


def faults(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kills after which no checkpoint, a torn one, or one more than an interval old would be loaded."""
    return [r for r in results if not r["whole"] or r["loaded"] < r["begun"] - 1]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children with SIGKILL: POSIX only")


@needs_fork
def test_killed_at_every_file_boundary(tmp_path: Path) -> None:
    results = killed(tmp_path, "ours", "boundary", 200)
    assert 25 < len(results) < 200  # all of them; the last one came after the end of the save
    assert faults(results) == []
    # both sides of the rename were hit
    assert {r["loaded"] for r in results} == {2, 3}
    assert all(r["left"] == [f"checkpoint-{r['loaded'] + n}" for n in (1, 2)] for r in results)


@needs_fork
def test_killed_at_random_moments(tmp_path: Path) -> None:
    number = 50 if os.environ.get("EA_FULL") == "1" else 20
    results = killed(tmp_path, "ours", "random", number)
    assert len(results) == number
    assert faults(results) == []
    assert all(r["left"] == [f"checkpoint-{r['loaded'] + n}" for n in (1, 2)] for r in results)


@needs_fork
def test_a_disk_that_is_full_after_any_byte(tmp_path: Path) -> None:
    results = killed(tmp_path, "ours", "full", 20)
    assert len(results) == 20
    assert faults(results) == []
    assert {r["loaded"] for r in results} == {2}
    assert faults(killed(tmp_path, "no-manifest", "full", 3))  # the twin mistakes half a save for a whole one


@needs_fork
@pytest.mark.parametrize("writer", ["no-rename", "no-manifest"])
def test_a_broken_writer_is_caught(writer: str, tmp_path: Path) -> None:
    """The twins lose data, and the same kills reveal it."""
    found = faults(killed(tmp_path, writer, "boundary", 200))
    assert found


def test_an_error_leaves_nothing_and_the_old_folder_stays(tmp_path: Path) -> None:
    old = save(tmp_path, 1, "old")

    def fail() -> None:
        with atomic_folder(old) as folder:
            (folder / "weights").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert is_complete(old)
    assert (old / "model" / "weights").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def test_leftovers_of_an_earlier_process_of_this_number_go(tmp_path: Path) -> None:
    save(tmp_path, 1, "old")
    for kind in ("partial", "old"):
        leftover = tmp_path / f".checkpoint-1.{kind}-{os.getpid()}"
        leftover.mkdir()
        (leftover / "torn").write_text("x")
    target = save(tmp_path, 1, "new")
    assert is_complete(target)
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "model", "state.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize("call", range(12))
def test_a_disk_that_fills_up_at_any_write(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each system call of a save in turn reports a full disk."""
    save(tmp_path, 1)
    calls = 0

    def full(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call + 1:
                raise OSError(28, "No space left on device")
            return function(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(atomic, "file_hash", full(atomic.file_hash))
    monkeypatch.setattr(atomic.os, "fsync", full(os.fsync))
    monkeypatch.setattr(atomic.os, "replace", full(os.replace))
    try:
        save(tmp_path, 2)
        failed = False
    except OSError:
        failed = True
    monkeypatch.undo()
    assert failed == (call < 9)  # 2 hashes, 5 syncs (3 files, 2 folders), 1 rename, 1 sync of the parent
    newest = newest_complete(tmp_path)
    assert newest is not None
    assert newest[0] in ((1,) if call < 8 else (2,))
    assert not list(tmp_path.glob(".*"))


def test_replacing_survives_a_failed_second_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, "old")
    rename = os.replace

    def fail_into_place(source: Path, target: Path) -> None:
        if ".partial-" in source.name:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(atomic.os, "replace", fail_into_place)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 1, "new")
    assert (tmp_path / "checkpoint-1" / "model" / "weights").read_text() == "old"


def test_replaces_what_is_there(tmp_path: Path) -> None:
    save(tmp_path, 1, "old")
    assert (save(tmp_path, 1, "new") / "model" / "weights").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize(
    "damage",
    ["changed", "cut", "missing", "no manifest", "not JSON", "not an object", "empty list", "deep", "folder"],
)
def test_a_damaged_checkpoint_is_passed_over(damage: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    weights, manifest = folder / "model" / "weights", folder / "manifest.json"
    match damage:
        case "changed":
            weights.write_text("weightz")
        case "cut":
            weights.write_text("weig")
        case "missing":
            weights.unlink()
        case "no manifest":
            manifest.unlink()
        case "not JSON":
            manifest.write_text('{"files": {')
        case "not an object":
            manifest.write_text("[1]")
        case "empty list":
            manifest.write_text('{"files": {}}')
        case "deep":
            manifest.write_text("[" * 100_000)
        case "folder":
            weights.unlink()
            weights.mkdir()
    assert not is_complete(folder)
    newest = newest_complete(tmp_path)
    assert newest is not None
    assert newest[0] == 1


def test_prune_keeps_the_newest_and_sweeps_what_kills_left(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20, 15):
        save(tmp_path, step)
    (tmp_path / "checkpoint-10" / "state.json").unlink()  # damaged, older
    damaged = save(tmp_path, 200)
    (damaged / "state.json").unlink()  # damaged, newer: will be saved again
    for name in (".checkpoint-7.partial-99", ".checkpoint-7.old-99", ".final.partial-1", ".final.old-1"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-x", "final", "checkpoint-5.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "log.jsonl").write_text("")
    prune(tmp_path, 2)
    names = sorted(path.name for path in tmp_path.iterdir())
    kept = ["checkpoint-100", "checkpoint-20", "checkpoint-200"]
    assert names == [*kept, "checkpoint-5.bak", "checkpoint-x", "final", "log.jsonl"]


def test_prune_and_newest_of_nothing(tmp_path: Path) -> None:
    prune(tmp_path, 1)
    assert newest_complete(tmp_path) is None
    assert newest_complete(tmp_path / "absent") is None


def test_too_little_space_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 5_000_000))
    require_space(tmp_path / "run", 5_000_000)
    with pytest.raises(UserError, match="has 5 MB left, a checkpoint needs 8 MB") as caught:
        require_space(tmp_path / "run", 8_000_000)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_whole_or_as_before(durable: bool, tmp_path: Path) -> None:
    path = tmp_path / "made" / "file.txt"
    with atomic_file(path, durable=durable) as partial:
        partial.write_text("one")
        assert not path.exists()

    def fail() -> None:
        with atomic_file(path, durable=durable) as partial:
            partial.write_text("tw")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    for name in (".file.txt.0a1b2c3d.part", ".mine.part", "film.mp4.part"):
        (tmp_path / name).touch()
    remove_partials(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine.part", "film.mp4.part"]


def test_a_new_folder_is_whole_or_absent(tmp_path: Path) -> None:
    def fill(out: Path, meanwhile: Callable[[], object], outside: Path | None = None) -> None:
        with new_folder(out, "out", outside) as staged:
            (staged / "file").write_text("whole")
            meanwhile()

    def interrupt() -> None:
        raise KeyboardInterrupt

    out = tmp_path / "deep" / "out"
    with pytest.raises(KeyboardInterrupt):
        fill(out, interrupt)
    assert list(out.parent.iterdir()) == []
    out.mkdir()
    fill(out, lambda: None)
    assert (out / "file").read_text() == "whole"
    taken = "`out` must be a new or empty folder"
    with pytest.raises(UserError, match=taken):
        fill(out, lambda: None)
    with pytest.raises(UserError, match=taken):
        fill(tmp_path / "late", (tmp_path / "late").touch)
    assert (tmp_path / "late").is_file()
    with pytest.raises(UserError, match="`out` must be outside the model folder"):
        fill(out / "in", lambda: None, outside=out)
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    with pytest.raises(UserError, match=taken):
        fill(tmp_path / "link", lambda: None)
