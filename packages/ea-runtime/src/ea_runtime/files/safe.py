"""Reading small files of a folder that may be hostile: no path leaves it, no file is larger than a cap.

A model folder comes from somebody else. Every name in it is checked before it is opened, a link is followed only
if it stays inside, and text quoted in an error is cut and escaped.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError

#: config.json, scheduler_config.json, ea.json: a published one has under 5 KB.
MAX_CONFIG_BYTES = 1 << 20
#: *.index.json: T5 XXL has 40 KB.
MAX_INDEX_BYTES = 16 << 20


def quote(text: object, limit: int = 80) -> str:
    """`text` for an error: escaped (no control characters reach a terminal) and cut."""
    shown = ascii(text)
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def plain(text: object, limit: int = 80) -> str:
    """`quote` without the quotation marks, for names in lists and for the first line of errors."""
    line = next(iter(str(text).splitlines()), "")
    shown = "".join(c if c.isprintable() else "?" for c in line)
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def quote_path(path: Path | str) -> str:
    """A path for an error: files differ in its end, so it is cut later than other text."""
    return quote(str(path), 400)


def real_path(path: Path) -> Path:
    """The path that links lead to, whether or not there is a file.

    Raises OSError for a loop of links. `Path.resolve` raises RuntimeError for one up to Python 3.12, and leaves it in
    the path from 3.13 on.
    """
    try:
        found = path.resolve()
    except RuntimeError as error:
        raise OSError(errno.ELOOP, str(error)) from error
    try:
        is_loop = stat.S_ISLNK(found.lstat().st_mode)
    except OSError as error:  # mostly no such file
        is_loop = error.errno == errno.ELOOP
    if is_loop:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return found


def inside(folder: Path, name: str) -> Path:
    """The real path of `name` (relative, `/` between parts) beneath `folder`.

    Raises UserError for an absolute name, one with `..`, a backslash or a NUL, and one whose links lead out
    of the folder. Nothing is opened and the file need not exist. In a Hugging Face cache the files are links
    into `blobs` next to `snapshots`; those count as inside.
    """
    pieces = name.split("/")
    plain = "\\" not in name and "\0" not in name and ":" not in name
    if not plain or any(piece in ("", ".", "..") for piece in pieces):
        raise UserError(
            f"a file name in model folder {quote_path(folder)} must be a relative path without '..', "
            f"got {quote(name)}; do not use this folder unless you trust its source"
        )
    try:
        real = real_path(folder / name)
        roots = [real_path(folder)]
    except OSError as error:  # a loop of links
        raise UserError(
            f"{quote(name)} in model folder {quote_path(folder)} cannot be followed: {error}"
        ) from error
    if roots[0].parent.name == "snapshots":
        roots.append(roots[0].parent.parent / "blobs")
    if not any(real.is_relative_to(root) for root in roots):
        raise UserError(
            f"{quote(name)} in model folder {quote_path(folder)} is a link that leaves the folder; "
            "replace it by a copy of the file that it points to"
        )
    return real


def is_file(path: Path) -> bool:
    """True for a regular file (not a pipe or a device, which would block or never end)."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read_json(folder: Path, name: str, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in file `name` of `folder`, at most `limit` bytes. Raises UserError."""
    path = inside(folder, name)
    where = f"{quote(name)} in model folder {quote_path(folder)}"
    if not is_file(path):
        raise UserError(f"{where} is missing or no regular file; download the folder again")
    size = path.stat().st_size
    if size > limit:
        raise UserError(f"{where} has {size:,} bytes, more than the {limit:,} such a file may have")
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(limit).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no valid JSON ({plain(error)}); download it again") from error
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} must hold a JSON object, got {quote(type(value).__name__)}")
    return value
