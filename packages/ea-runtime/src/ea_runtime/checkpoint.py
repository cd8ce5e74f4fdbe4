"""Folders that appear whole or not at all: written beside, hashed, synced, renamed, pruned afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ea_runtime.errors import UserError

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target`; on success it is hashed, synced and renamed to `target`.

    On any error it is removed and `target` stays as it was. An existing `target` is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _write_manifest(partial)
        for path in sorted(partial.rglob("*")):
            sync_path(path)
        sync_path(partial)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(target, old)
        os.replace(partial, target)
        sync_path(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(partial, ignore_errors=True)
        raise


def is_complete(folder: Path) -> bool:
    """Whether `folder` has a manifest and every file that it lists, with its hash. Never raises."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(listed) and all(_sha256(folder / name) == digest for name, digest in listed.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint-N of a run, oldest first, complete or not."""
    found = []
    if run.is_dir():
        for path in run.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match[1]), path))
    return sorted(found)


def newest_complete(run: Path) -> tuple[int, Path] | None:
    """The newest checkpoint whose manifest holds, or None where the run has none."""
    for step, path in reversed(checkpoints(run)):
        if is_complete(path):
            return step, path
    return None


def prune(run: Path, keep: int) -> None:
    """Removes all but the newest `keep` (1 or more) complete checkpoints, and what killed saves left behind.

    Damaged checkpoints go once a newer one is complete. Nobody else may be saving in `run` meanwhile.
    """
    assert keep > 0
    complete = [path for _, path in checkpoints(run) if is_complete(path)]
    for path in complete[:-keep]:
        remove_checkpoint(path)
    if complete:
        newest = int(complete[-1].name.split("-")[1])
        for step, path in checkpoints(run):
            if step < newest and path not in complete:
                remove_checkpoint(path)
    for name in (".checkpoint-*", ".final"):
        for leftover in (*run.glob(f"{name}.partial-*"), *run.glob(f"{name}.old-*")):
            shutil.rmtree(leftover, ignore_errors=True)


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint so that no half of it can be taken for whole: the manifest goes first."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def require_space(folder: Path, needed: int) -> None:
    """Raises UserError where the disk of `folder` has fewer than `needed` bytes left."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk of {str(folder)!r} has {free / 1e6:.0f} MB left, a checkpoint needs "
            f"{needed / 1e6:.0f} MB; free some space or choose another `out`"
        )


def _write_manifest(folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_path(path: Path) -> None:
    """Makes a file, or the renames in a folder, outlive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
