"""Reads the list of a training set: EasyAnimate's JSON, or CSV, of file_path, text, type, width, height.

Only the list is opened here. A row may also have `num_frames`, a video's number of frames, so that no file need be
opened before a run.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, overload

from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote, quote_path
from ea_runtime.training.data.dataset import Item

NAMES = ("dataset.json", "dataset.csv")
_MAX_PIXELS = 1 << 20
_MAX_FRAMES = 1 << 30


@dataclass(slots=True)
class Entries(Sequence[Item]):
    """The rows of a list, by column: millions of them fit. 0: a size or number that a row lacks."""

    root: Path
    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    videos: list[bool] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    num_frames: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        size = self.widths[index], self.heights[index]
        return Item(self.root / self.names[index], self.texts[index], self.videos[index], *size)

    def take(self, indices: Iterable[int]) -> Entries:
        """Only those rows, in that order."""
        kept = Entries(self.root)
        for i in indices:
            for name in ("names", "texts", "videos", "widths", "heights", "num_frames"):
                getattr(kept, name).append(getattr(self, name)[i])
        return kept


def read_list(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Entries:
    """The rows of a set, checked.

    path: a folder that holds dataset.json or dataset.csv, or such a file. root: the folder that `file_path`s are
    relative to; None: the list's own. Raises UserError, one line: no list, no JSON in it, no rows, a
    row without `file_path` or `text`, a path that is absolute, a URL, or leaves the root (also through a link).
    """
    file = _find(Path(path))
    folder = Path(root).resolve() if root is not None else file.parent.resolve()
    if not folder.is_dir():
        raise UserError(f"`data.root` must be a folder, got {quote_path(folder)}, which is none")
    entries = Entries(folder)
    beneath = _Beneath(folder)
    for number, row in enumerate(_rows(file)):
        _add(entries, row, f"entry {number} of {quote_path(file)}", beneath)
    if not len(entries):
        raise UserError(f"{quote_path(file)} must be a list of entries, got an empty list")
    return entries


def _find(path: Path) -> Path:
    for file in [path / name for name in NAMES] if path.is_dir() else [path]:
        if file.exists():
            if file.suffix.lower() in (".json", ".csv"):
                return file
            raise UserError(f"`data.path` must be a folder, a .json or a .csv file, got {quote_path(path)}")
    raise UserError(
        f"`data.path` must be a set with a dataset.json, got {quote_path(path.absolute())}; "
        "make one with `ea data run` or `ea data draw`"
    )


def _rows(file: Path) -> Iterator[Any]:
    try:
        if file.suffix.lower() == ".csv":
            with file.open(encoding="utf-8", newline="") as handle:
                yield from csv.DictReader(handle)
            return
        rows = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{quote_path(file)} cannot be read: {error.strerror or error}") from error
    except (csv.Error, ValueError, RecursionError) as error:
        raise UserError(f"{quote_path(file)} is not valid {file.suffix[1:].upper()}: {error}") from error
    if not isinstance(rows, list):
        raise UserError(f"{quote_path(file)} must be a list of entries, got {type(rows).__name__}")
    yield from rows


class _Beneath:
    """Tells whether a file is beneath a folder, links followed; looks up each folder of the set once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, bool] = {"": True}

    def __call__(self, name: str) -> bool:
        folder = name.rpartition("/")[0]
        if folder not in self._folders:
            self._folders[folder] = self._is_inside(folder)
        path = f"{self.root}/{name}"
        return self._folders[folder] and (not os.path.islink(path) or self._is_inside(name))

    def _is_inside(self, name: str) -> bool:
        try:
            return (self.root / name).resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):  # a loop of links
            return False


def _add(entries: Entries, row: Any, where: str, beneath: _Beneath) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{where} must be an object, got {type(row).__name__}")
    for key in ("file_path", "text"):
        if not isinstance(row.get(key), str):
            got = quote(row[key]) if key in row else "nothing"
            raise UserError(f"{where}: `{key}` must be a string, got {got}")
    kind = row.get("type") or "image"
    if kind not in ("image", "video"):
        raise UserError(f"{where}: `type` must be 'image' or 'video', got {quote(kind)}")
    entries.names.append(_name(where, row["file_path"], beneath))
    entries.texts.append(row["text"])
    entries.videos.append(kind == "video")
    entries.widths.append(_number(where, "width", row.get("width"), _MAX_PIXELS, "pixels"))
    entries.heights.append(_number(where, "height", row.get("height"), _MAX_PIXELS, "pixels"))
    entries.num_frames.append(_number(where, "num_frames", row.get("num_frames"), _MAX_FRAMES, "frames"))


def _name(where: str, name: str, beneath: _Beneath) -> str:
    relative = PurePosixPath(name)
    if not relative.parts or "\0" in name:
        raise UserError(f"{where}: `file_path` must name a file, got {quote(name)}")
    if "://" in name:
        raise UserError(f"{where}: `file_path` must be a file in the set, not an address, got {quote(name)}")
    if relative.is_absolute() or ".." in relative.parts or not beneath(str(relative)):
        raise UserError(f"{where}: `file_path` must stay beneath the set, got {quote(name)}")
    return str(relative)


def _number(where: str, key: str, value: Any, limit: int, unit: str) -> int:
    """A number of a row, as JSON or CSV writes it; 0 if missing."""
    if value is None or value == "":
        return 0
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
        if not 0 <= number < limit:
            raise ValueError
    except ValueError:
        raise UserError(f"{where}: `{key}` must be a number of {unit}, got {quote(value)}") from None
    return int(number)
