"""Files and folders that appear whole or not at all: written beside, hashed, synced, renamed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ea_runtime.errors import UserError
from ea_runtime.files.hashes import file_hash

MANIFEST = "manifest.json"


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
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def sync_path(path: Path) -> None:
    """Makes a file, or the renames in a folder, outlive a power failure; Windows opens no folders to sync."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_sibling(path: Path) -> Path:
    """A name that nothing has, beside `path` and so on the same file system."""
    return path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}.part")


@contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, for whole files to be renamed from; removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
