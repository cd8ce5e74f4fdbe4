"""Checkpoints of a run: which are complete, which is the newest, which may be removed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from ea_runtime.files.atomic import MANIFEST
from ea_runtime.training.run.checkpoints import (
    checkpoints,
    is_complete,
    newest_complete,
    prune,
    remove_checkpoint,
)


def write(folder: Path, **files: str) -> Path:
    """A complete folder of these files."""
    folder.mkdir(parents=True)
    listed = {}
    for name, text in (files or {"state": "s", "more": "m"}).items():
        (folder / name).write_text(text)
        listed[name] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({"files": listed}))
    return folder


def steps(run: Path) -> list[int]:
    return [step for step, _ in checkpoints(run)]


def test_every_listed_file_must_be_there_with_its_hash(tmp_path: Path) -> None:
    folder = write(tmp_path / "one")
    assert is_complete(folder)
    (folder / "not listed").write_text("x")
    assert is_complete(folder)
    for name in ("state", "more"):
        text = (folder / name).read_text()
        (folder / name).write_text("other")
        assert not is_complete(folder)
        (folder / name).unlink()
        assert not is_complete(folder)
        (folder / name).write_text(text)
        assert is_complete(folder)
    remove_checkpoint(folder)
    assert not folder.exists()


OTHERS = (
    *("", "{", "[]", "{}", "null", "[" * 100_000),
    *('{"files": {}}', '{"files": []}', '{"files": null}', '{"files": 3}', '{"files": ["state"]}'),
    *('{"files": {"state": 3}}', '{"files": {"none": "00"}}', '{"files": {"a\\u0000b": ""}}'),
)


@pytest.mark.parametrize("text", OTHERS, ids=range(len(OTHERS)))
def test_a_manifest_of_another_form_is_none(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path / "one")
    (folder / MANIFEST).write_text(text)
    assert not is_complete(folder)
    (folder / MANIFEST).write_bytes(b"\xff\xfe")
    assert not is_complete(folder)
    (folder / MANIFEST).unlink()
    assert not is_complete(folder)
    assert is_complete(tmp_path / "none") is False


def test_checkpoints_are_listed_by_number(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-0"):
        write(tmp_path / name)
    (tmp_path / "checkpoint-11").mkdir()  # not complete
    for name in (
        "checkpoint-",
        "checkpoint-1a",
        "xcheckpoint-1",
        ".checkpoint-7.partial-1",
        "checkpoint-2.old",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-12").write_text("a file")
    assert checkpoints(tmp_path) == [(n, tmp_path / f"checkpoint-{n}") for n in (0, 9, 10, 11)]
    assert newest_complete(tmp_path) == (10, tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-10" / "state").write_text("damaged")
    assert newest_complete(tmp_path) == (9, tmp_path / "checkpoint-9")
    assert checkpoints(tmp_path / "none") == []
    assert newest_complete(tmp_path / "none") is None
    assert checkpoints(tmp_path / "checkpoint-12") == []


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [40]), (2, [30, 40]), (3, [20, 30, 40]), (9, [10, 20, 30, 40])]
)
def test_the_newest_are_kept(tmp_path: Path, keep: int, left: list[int]) -> None:
    for step in (10, 20, 30, 40):
        write(tmp_path / f"checkpoint-{step}")
    prune(tmp_path, keep)
    assert steps(tmp_path) == left
    assert all(is_complete(path) for _, path in checkpoints(tmp_path))


def test_damaged_ones_count_for_nothing_and_go_once_a_newer_one_is_complete(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        write(tmp_path / f"checkpoint-{step}")
    for step in (20, 40):
        (tmp_path / f"checkpoint-{step}" / "state").write_text("damaged")
    prune(tmp_path, 2)
    assert steps(tmp_path) == [10, 30, 40]  # 40 is damaged, and nothing newer is complete
    (tmp_path / "checkpoint-30" / "state").write_text("damaged")
    (tmp_path / "checkpoint-10" / "state").write_text("damaged")
    prune(tmp_path, 1)
    assert steps(tmp_path) == [10, 30, 40]  # none is complete: none is removed


def test_only_new_and_changed_ones_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save would otherwise read all that is kept, gigabytes for a large model."""
    from ea_runtime.training.run import checkpoints as module

    read: list[str] = []
    real = module.file_hash
    monkeypatch.setattr(module, "file_hash", lambda path: read.append(path.parent.name) or real(path))
    for step in (10, 20):
        write(tmp_path / f"checkpoint-{step}", state="s")
        prune(tmp_path, 9)
    assert read == ["checkpoint-10", "checkpoint-20"]
    (tmp_path / "checkpoint-10" / "state").write_text("x")  # of the same size
    read.clear()
    prune(tmp_path, 9)
    assert read == ["checkpoint-10"]
    assert steps(tmp_path) == [20]
    write(tmp_path / "checkpoint-10", state="s")  # another one in its place
    read.clear()
    prune(tmp_path, 9)
    assert read == ["checkpoint-10"]
    assert is_complete(tmp_path / "checkpoint-10")
    assert read == ["checkpoint-10"] * 2, "asked alone, it is always read"


def test_leftovers_of_killed_saves_go_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-10")
    leftovers = [".checkpoint-20.partial-1", ".checkpoint-9.old-77", ".final.partial-1", ".final.old-3"]
    kept = ["final", "logs", ".checkpoint-20", ".final", "checkpoint.partial-1", ".other.partial-1"]
    for name in leftovers + kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    stays = ".checkpoint-3.partial-9"
    (tmp_path / stays).write_text("no folder: it cannot be removed as one, and that ends no run")
    prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, stays, "checkpoint-10"])


def test_a_half_removed_one_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest goes first."""
    folder = write(tmp_path / "checkpoint-10")

    def dies(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ea_runtime.training.run.checkpoints.shutil.rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(folder)
    assert (folder / "state").exists()
    assert not is_complete(folder)
    monkeypatch.undo()
    remove_checkpoint(folder)
    assert not folder.exists()


def test_one_at_least_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-10")
    for keep in (0, -1):
        with pytest.raises(AssertionError):
            prune(tmp_path, keep)
    assert steps(tmp_path) == [10]
