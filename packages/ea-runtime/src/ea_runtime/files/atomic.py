"""Files and folders that appear whole or not at all: written next to their place, synced, renamed."""

from __future__ import annotations

import glob
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ea_runtime.errors import UserError
from ea_runtime.files.hashes import file_hash
from ea_runtime.files.safe import quote_path

MANIFEST = "manifest.json"


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder next to `target`; on success it is hashed, synced and renamed to `target`.

    On any error it is removed and `target` stays as it was. An existing `target` is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{shortened(target.name)}.partial-{os.getpid()}")
    old = target.with_name(f".{shortened(target.name)}.old-{os.getpid()}")
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


def require_space(folder: Path, needed: int) -> None:
    """Raises UserError if the disk of `folder` has fewer than `needed` bytes left."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the disk of {str(folder)!r} has {free / 1e6:.0f} MB left, a checkpoint needs "
            f"{needed / 1e6:.0f} MB; free some space or choose another `out`"
        )


def require_new_folder(folder: Path, name: str, outside: Path | None = None) -> None:
    """Raises UserError unless `folder` is absent or empty.

    name: the argument that gave it. outside: a folder that it may not be in.
    """
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"`{name}` must be a new or empty folder, got {quote_path(folder)}; give another name"
        )
    if outside is not None and folder.resolve().is_relative_to(outside.resolve()):
        raise UserError(
            f"`{name}` must be outside the model folder, got {quote_path(folder)}; give another place"
        )


@contextmanager
def new_folder(target: Path, name: str, outside: Path | None = None) -> Iterator[Path]:
    """Yields an empty folder next to `target`; on success it becomes `target`, on any error it is removed.

    Parents are made. Raises UserError as `require_new_folder`, at the start and again at the end.
    """
    require_new_folder(target, name, outside)
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(target) as staged:
        yield staged
        require_new_folder(target, name)  # somebody may have filled it meanwhile
        if target.is_dir():
            target.rmdir()  # not every system renames onto an empty folder
        os.replace(staged, target)


@contextmanager
def atomic_file(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a name next to `target` to write to; on success it is renamed to `target`, on any error it is removed.

    Makes the folder. durable: the file also survives a power failure.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_sibling(target)
    try:
        yield partial
        if durable:
            sync_path(partial)
        os.replace(partial, target)
        if durable:
            sync_path(target.parent)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomic(target: Path, text: str) -> None:
    """A text file in UTF-8, whole or not at all."""
    with atomic_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partials(folder: Path) -> None:
    """Removes what killed processes left of files in `folder`. Nobody else may be writing there meanwhile."""
    for partial in folder.glob(f".*.{'[0-9a-f]' * 8}.part"):
        partial.unlink(missing_ok=True)


def remove_partials_of(target: Path) -> None:
    """Removes what killed processes left next to `target` while they wrote it. Nobody else may be writing it."""
    for partial in target.parent.glob(f"{glob.escape('.' + shortened(target.name))}.{'[0-9a-f]' * 8}.part"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _write_manifest(folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def sync_path(path: Path) -> None:
    """Makes a file, or the renames in a folder, survive a power failure; Windows opens no folders to sync."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_sibling(path: Path) -> Path:
    """An unused name next to `path`, so on the same file system; a long name is cut, as its own would not fit."""
    return path.with_name(f".{shortened(path.name)}.{secrets.token_hex(4)}.part")


@contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """An empty folder next to `out`, to rename whole files from; removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f".{shortened(out.name)}-", dir=out.parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shortened(name: str) -> str:
    """At most 200 bytes of a file name, whole characters."""
    return os.fsencode(name)[:200].decode(errors="ignore")
