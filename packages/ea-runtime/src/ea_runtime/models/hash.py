"""One hash for the contents of a model folder, so that a run can say which weights it used."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ea_runtime.files.hashes import file_hash
from ea_runtime.files.safe import inside, is_file
from ea_runtime.models.layout import PARTS, PREPROCESSOR_FOLDERS, resolve_folder

_FOLDERS = (*(spec.folder for spec in PARTS.values()), "tokenizer", "scheduler", *PREPROCESSOR_FOLDERS)
_ENDINGS = (".json", ".safetensors", ".model", ".txt")
_cache: dict[tuple[str, int, int, int], bytes] = {}


def model_hash(model: str | os.PathLike[str]) -> str:
    """sha256 (64 hex digits) over the names and contents of all files that loading reads, sorted by name.

    Two folders of equal files have equal hashes wherever they are. Each file's own digest is kept in memory
    until its size, time or inode changes. Raises UserError for a model that does not exist.
    """
    return folders_hash(model, "ea.json", *_FOLDERS)


def part_hash(model: str | os.PathLike[str], part: str) -> str:
    """As `model_hash`, of one part's folder only: "vae", "denoiser" or "text"."""
    return folders_hash(model, PARTS[part].folder)


def folders_hash(model: str | os.PathLike[str], *folders: str) -> str:
    """As `model_hash`, of some of a model's folders only, such as "text_encoder" and "tokenizer"."""
    folder = resolve_folder(model)
    total = hashlib.sha256()
    for name in hashed_files(folder):
        if name.partition("/")[0] in folders:
            total.update(name.encode("utf-8", "surrogateescape") + b"\0" + _file_digest(inside(folder, name)))
    return total.hexdigest()


def hashed_files(folder: Path) -> list[str]:
    """The names of the files that count, relative to `folder`, sorted."""
    names = ["ea.json"] if is_file(folder / "ea.json") else []
    for part in _FOLDERS:
        directory = inside(folder, part)
        if directory.is_dir():
            entries = (entry.name for entry in directory.iterdir() if entry.name.endswith(_ENDINGS))
            names += [f"{part}/{name}" for name in entries if is_file(inside(folder, f"{part}/{name}"))]
    return sorted(names)


def _file_digest(path: Path) -> bytes:
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if key not in _cache:
        _cache[key] = bytes.fromhex(file_hash(path))
    return _cache[key]


def part_digest(folder: Path, part: str) -> str:
    """As `part_hash`, with all that the pipeline loads: a text encoder comes with its tokenizer."""
    also = ["tokenizer"] if part == "text" else []
    return folders_hash(folder, PARTS[part].folder, *also)
