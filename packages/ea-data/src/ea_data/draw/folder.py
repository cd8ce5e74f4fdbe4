"""A new folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_target(folder: Path) -> None:
    """Raises ValueError unless `folder` is absent or an empty folder."""
    if folder.is_dir():
        if any(folder.iterdir()):
            raise ValueError(f"the folder {folder} is not empty; name a new one or empty it first")
    elif folder.exists() or folder.is_symlink():
        raise ValueError(f"{folder} exists and is no folder; name a new one")


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary sibling to write into, which becomes `folder` when the block ends well and is removed otherwise.

    `folder` must be absent or empty; parents are made. Raises ValueError for one that is in use or cannot be made.
    """
    folder = Path(folder).resolve()
    check_target(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {folder.parent}: {error.strerror or error}") from error
    try:
        yield temporary
        # mkdtemp makes a private folder; a set is as readable as any other new folder.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        check_target(folder)  # again: someone may have filled it while we drew
        if folder.exists():
            folder.rmdir()  # not every system renames onto an empty folder
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
