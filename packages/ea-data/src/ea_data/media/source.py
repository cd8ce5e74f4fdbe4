"""Finds raw videos and pictures beneath a folder: the candidates, and why other files are skipped.

Opens no file and follows no link. `probe.py` finds out the contents of a candidate.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ea_runtime.errors import UserError
from ea_runtime.video.pictures import PICTURE_SUFFIXES

_VIDEO = (
    "mp4 m4v mov qt 3gp 3g2 mkv webm avi divx mpg mpeg ts mts m2ts flv f4v wmv asf ogv ogg ivf nut mxf vob"
)
#: Suffixes of browsers and downloaders for files that are not complete.
_PARTIAL = "part partial crdownload download tmp temp aria2 ytdl !qb opdownload"
VIDEO_SUFFIXES, PARTIAL_SUFFIXES = (
    frozenset(f".{name}" for name in names.split()) for names in (_VIDEO, _PARTIAL)
)
#: Reason to skip a file -> its words for people.
SKIPPED = {
    "hidden": "hidden",
    "partial": "not fully downloaded",
    "link": "links",
    "link_out": "links that lead out of the folder",
    "special": "not a regular file",
    "picture": "pictures (`--pictures` takes them)",
    "other": "no video or picture by its name",
    "unreadable": "folders that cannot be read",
}


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate. source: path relative to the root, `/` between parts. size in bytes; mtime in nanoseconds."""

    source: str
    size: int
    mtime: int

    @property
    def key(self) -> str:
        """The same as long as the file is not touched."""
        return f"{self.source}\0{self.size}\0{self.mtime}"


def check_root(raw: str | os.PathLike[str]) -> Path:
    """The folder of raw files, resolved. Raises UserError if it is not a folder."""
    root = Path(raw)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"`raw` must be a folder of videos, but {str(raw)!r} {what}")
    return root.resolve()


def find_files(
    root: Path,
    skipped: Counter[str],
    *,
    pictures: bool = True,
    on_skip: Callable[[str, str], None] | None = None,
) -> Iterator[Found]:
    """Candidates in a fixed order (by name, folder by folder), with one folder's names in memory at a time.

    skipped: counts skipped files by the keys of SKIPPED. pictures: they are candidates too. on_skip: called with
    the source of each skipped file and its key of SKIPPED.
    """

    def skip(source: str, why: str) -> None:
        skipped[why] += 1
        if on_skip is not None:
            on_skip(source, why)

    suffixes = VIDEO_SUFFIXES | PICTURE_SUFFIXES if pictures else VIDEO_SUFFIXES
    return _walk(root, root, "", suffixes, skip)


def tell_skipped(skipped: Mapping[str, int]) -> str:
    """The skipped files in words: "hidden 2, links 1"."""
    return ", ".join(f"{SKIPPED.get(why, why)} {count:,}" for why, count in sorted(skipped.items()))


def _walk(
    root: Path, folder: Path, prefix: str, suffixes: frozenset[str], skip: Callable[[str, str], None]
) -> Iterator[Found]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError:
        skip(prefix, "unreadable")
        return
    for entry in listed:
        source = f"{prefix}{entry.name}"
        if entry.name.startswith("."):
            skip(source, "hidden")
        elif entry.is_symlink():
            skip(source, "link" if _leads_inside(root, Path(entry.path)) else "link_out")
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(root, Path(entry.path), f"{source}/", suffixes, skip)
        else:
            found = _candidate(entry, source, suffixes)
            if isinstance(found, Found):
                yield found
            else:
                skip(source, found)


def _candidate(entry: os.DirEntry[str], source: str, suffixes: frozenset[str]) -> Found | str:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in PARTIAL_SUFFIXES:
        return "partial"
    if suffix not in suffixes:
        return "picture" if suffix in PICTURE_SUFFIXES else "other"
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:  # removed meanwhile
        return "partial"
    if not stat.S_ISREG(status.st_mode):
        return "special"
    try:
        source.encode("utf-8")
    except UnicodeEncodeError:
        return "other"  # a name that is not text: neither JSON nor parquet can hold it
    return Found(source, status.st_size, status.st_mtime_ns)


def _leads_inside(root: Path, link: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):
        return False
