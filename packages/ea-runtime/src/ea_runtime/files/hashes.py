"""sha256 of files, and of folders by their files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def file_hash(path: Path) -> str:
    """sha256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: Path) -> str:
    """sha256 of a file; of a folder: over its files' names and hashes, sorted by name."""
    if not path.is_dir():
        return file_hash(path)
    total = hashlib.sha256()
    for entry in sorted(path.iterdir()):
        total.update(f"{entry.name} {content_hash(entry)}\n".encode())
    return total.hexdigest()


#: A larger file is hashed in part: its first, middle and last block.
WHOLE_BYTES = 256 << 10
_BLOCK = 64 << 10


def sampled_hash(path: Path) -> str:
    """sha256 of a file's size and contents, 64 hex digits; of three blocks of one that is over WHOLE_BYTES.

    So sets of terabytes are told apart in minutes. Two files of one size that differ only between the blocks have one
    hash; re-encoded videos and pictures do not.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        total = hashlib.sha256(f"{size} ".encode())
        if size <= WHOLE_BYTES:
            total.update(file.read())
        else:
            for start in (0, (size - _BLOCK) // 2, size - _BLOCK):
                file.seek(start)
                total.update(file.read(_BLOCK))
    return total.hexdigest()
