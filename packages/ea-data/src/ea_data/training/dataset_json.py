"""Reads the list of a training set: EasyAnimate's JSON or CSV, or JSON lines, of file_path, text, type, width, height.

Only the list is opened here, and the first bytes of files without `type`. A row may also have `num_frames`, a video's
number of frames, so that no file need be opened before a run, and `given`: "start" or "ends" for a clip whose caption
holds for what comes after its first frames, or between its first and last ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, overload

from ea_data.media.kinds import kind_at
from ea_data.training.rows import KINDS, Rows
from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote, quote_path, real_path
from ea_runtime.training.data.dataset import Item

NAMES = ("dataset.json", "dataset.csv", "dataset.jsonl")
_MAX_PIXELS = 1 << 20
_MAX_FRAMES = 1 << 30
_COLUMNS = ("names", "texts", "videos", "widths", "heights", "num_frames", "typed", "given")
_GIVEN = ("", "start", "ends")
_DRIVE = re.compile(r"[A-Za-z]:/")


@dataclass(slots=True)
class Entries(Sequence[Item]):
    """The rows of a list, by column: millions of them fit. 0: a size or number that a row lacks.

    typed: False for a row without `type`, whose kind was then read from the file.
    """

    root: Path
    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    videos: list[bool] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    num_frames: list[int] = field(default_factory=list)
    typed: list[bool] = field(default_factory=list)
    given: list[str] = field(default_factory=list)

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
        at = self.root / self.names[index]
        return Item(at, self.texts[index], self.videos[index], *size, self.given[index])

    def take(self, indices: Iterable[int]) -> Entries:
        """Only those rows, in that order."""
        kept = Entries(self.root)
        for i in indices:
            for name in _COLUMNS:
                getattr(kept, name).append(getattr(self, name)[i])
        return kept


def read_list(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Entries:
    """The rows of a set, checked.

    path: a folder that holds one of NAMES, or such a file. root: the folder that `file_path`s are relative to; None:
    the list's own. The kind of an entry without `type` is read from its file.
    Raises UserError, one line: no list, nothing of its kind in it, no rows, a row without `file_path` or `text`, a
    path that is a URL or leaves the root (also through a link).
    """
    file = _find(Path(path))
    folder = Path(root).resolve() if root is not None else file.parent.resolve()
    if not folder.is_dir():
        raise UserError(f"`data.root` must be a folder, got {quote_path(folder)}, which is none")
    entries = Entries(folder)
    beneath = _Beneath(folder)
    rows = Rows(file)
    for row in rows:
        try:
            _add(entries, row, beneath)
        except ValueError as error:
            raise UserError(f"{rows.where}: {error}") from None
    if not len(entries):
        raise UserError(f"{quote_path(file)} must be a list of entries, got an empty list")
    return entries


def _find(path: Path) -> Path:
    for file in [path / name for name in NAMES] if path.is_dir() else [path]:
        if file.exists():
            if file.suffix.lower() in KINDS:
                return file
            kinds = ", ".join(KINDS)
            raise UserError(f"`data.path` must be a folder or a list ({kinds}), got {quote_path(path)}")
    raise UserError(
        f"`data.path` must be a set with a dataset.json, got {quote_path(path.absolute())}; "
        "make one with `ea data run` or `ea data draw`, or name the folder that it has moved to"
    )


class _Beneath:
    """Makes paths relative to a folder, links followed; looks up each folder of the set once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, str | None] = {"": ""}  # as written -> relative to the root, None: outside

    def __call__(self, name: str) -> str | None:
        """The path relative to the root; None if it leads out of it. An absolute one may lead into it."""
        folder, _, last = name.rpartition("/")
        if name.startswith("/"):
            folder = folder or "/"
        if folder not in self._folders:
            inside = self._resolved(folder)
            # a relative path stays as it is written, whatever its links say
            self._folders[folder] = folder if inside is not None and not folder.startswith("/") else inside
        known = self._folders[folder]
        if known is None:
            return None
        relative = f"{known}/{last}" if known else last
        is_link = os.path.islink(self.root / relative)
        return None if is_link and self._resolved(relative) is None else relative

    def _resolved(self, name: str) -> str | None:
        try:
            relative = real_path(self.root / name).relative_to(self.root).as_posix()
        except (OSError, ValueError):  # a loop of links; not in it
            return None
        return "" if relative == "." else relative


def _add(entries: Entries, row: Any, beneath: _Beneath) -> None:
    """Raises ValueError for what is wrong in the row."""
    if not isinstance(row, dict):
        raise ValueError(f"must be an object, got {type(row).__name__}")
    for key in ("file_path", "text"):
        if not isinstance(row.get(key), str):
            got = quote(row[key]) if key in row else "nothing"
            raise ValueError(f"`{key}` must be a string, got {got}")
    kind = row.get("type")
    kind = kind.strip().lower() if isinstance(kind, str) else kind
    if kind not in ("image", "video", "", None):
        raise ValueError(f"`type` must be 'image' or 'video', got {quote(kind)}")
    entries.names.append(_name(row["file_path"], beneath))
    entries.typed.append(bool(kind))
    # Differs from EasyAnimate: it takes every entry without `type` for a picture.
    kind = kind or kind_at(beneath.root / entries.names[-1])
    entries.texts.append(row["text"])
    entries.videos.append(kind == "video")
    entries.widths.append(_number("width", row.get("width"), _MAX_PIXELS, "pixels"))
    entries.heights.append(_number("height", row.get("height"), _MAX_PIXELS, "pixels"))
    entries.num_frames.append(_number("num_frames", row.get("num_frames"), _MAX_FRAMES, "frames"))
    given = row.get("given") or ""
    if given not in _GIVEN:
        raise ValueError(f"`given` must be 'start' or 'ends', or left out, got {quote(given)}")
    entries.given.append(given)


def _name(name: str, beneath: _Beneath) -> str:
    if "\\" in name and not os.path.lexists(beneath.root / name.replace("\0", "")):
        name = name.replace("\\", "/")  # a list from Windows
    path = PurePosixPath(name)
    if not path.parts or "\0" in name:
        raise ValueError(f"`file_path` must name a file, got {quote(name)}")
    if "://" in name:
        raise ValueError(f"`file_path` must be a file in the set, not an address, got {quote(name)}")
    # on Windows, a path with a drive is absolute
    is_elsewhere = ".." in path.parts or (os.name != "nt" and _DRIVE.match(name))
    relative = None if is_elsewhere else beneath(str(path))
    if not relative:
        raise ValueError(
            f"`file_path` must stay beneath the set's folder {quote_path(beneath.root)}, got {quote(name)}; "
            "`data.root` names another folder"
        )
    return relative


def _number(key: str, value: Any, limit: int, unit: str) -> int:
    """A number of a row, as JSON or CSV writes it; 0 if missing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return 0
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
        if not 0 <= number < limit:
            raise ValueError
    except ValueError:
        raise ValueError(f"`{key}` must be a number of {unit}, got {quote(value)}") from None
    return int(number)
