"""sha256 of files, and of folders by their files."""

from __future__ import annotations

import hashlib
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
