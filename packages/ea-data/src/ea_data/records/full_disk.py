"""A full disk, told in one line wherever it is met: by the system, by FFmpeg or by SQLite."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ea_runtime.errors import UserError

_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name)}


def is_full(error: BaseException) -> bool:
    """True if an error says that a disk or a quota is full."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in _FULL


def says_full(reason: str) -> bool:
    """True for the reason of a task that a full disk ended, in a process elsewhere."""
    return any(os.strerror(number) in reason for number in _FULL)


def full_disk(folder: Path) -> UserError:
    """The error for people."""
    place = str(folder)
    return UserError(
        f"the disk of `--output` {place!r} is full; free some space and run the same command again: it resumes"
    )


@contextmanager
def told_if_full(folder: Path) -> Iterator[None]:
    """Turns errors of a full disk into a UserError of one line. folder: the set's."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if is_full(error):
            raise full_disk(folder) from error
        raise
