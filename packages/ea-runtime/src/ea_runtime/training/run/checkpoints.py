"""The checkpoints of a run: listing, checking and removing them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from ea_runtime.files.atomic import MANIFEST
from ea_runtime.files.hashes import file_hash

_NAME = re.compile(r"checkpoint-(\d+)")
#: folder -> names, sizes and times of its files when `prune` last found it complete
_found_complete: dict[Path, list[tuple[str, int, int]]] = {}


def is_complete(folder: Path) -> bool:
    """True if `folder` has a manifest and every file that it lists, with its hash. Never raises."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(listed) and all(file_hash(folder / name) == digest for name, digest in listed.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _is_still_complete(folder: Path) -> bool:
    """As `is_complete`, but files are not read again where they are as this process found them complete."""
    files = []
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        files.append((path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns))
    if _found_complete.get(folder) == files:
        return True
    complete = is_complete(folder)
    if complete:
        _found_complete[folder] = files
    return complete


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
    """The newest complete checkpoint, or None."""
    for step, path in reversed(checkpoints(run)):
        if is_complete(path):
            return step, path
    return None


def prune(run: Path, keep: int) -> None:
    """Removes all but the newest `keep` (1 or more) complete checkpoints, and what killed saves left behind.

    Damaged checkpoints are removed once a newer one is complete. Nobody else may be saving in `run` meanwhile.
    """
    assert keep > 0
    complete = [path for _, path in checkpoints(run) if _is_still_complete(path)]
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
    """Removes a checkpoint, its manifest first, so that a half of it never counts as complete."""
    _found_complete.pop(folder, None)
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)
