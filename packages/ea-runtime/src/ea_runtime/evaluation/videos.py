"""The videos of a folder, with what their sidecars say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.generation.recipe import read_embedded
from ea_runtime.generation.sidecar import read_sidecar, sidecars_of
from ea_runtime.video.output import KINDS

#: files that are judged; pictures are none
SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".m4v", ".avi", ".gif", ".webp")


@dataclass(frozen=True)
class Video:
    """A file or folder of frames. key: what pairs it with a video of another folder: the name without its ending, if
    no other has that. record: of its sidecar, or as written in the file; {} without.
    """

    path: Path
    key: str
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the file or folder, in characters that a file can hold."""
        return _shown(self.path.name)

    @property
    def prompt(self) -> str | None:
        """The prompt that it was made from, if that is known."""
        return self.record.get("settings", {}).get("prompt")


@dataclass(frozen=True)
class Folder:
    """The videos of a folder in order of their names. notes: lines about sidecars that are not used."""

    path: Path
    videos: tuple[Video, ...]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the folder, without the way to it."""
        return _shown(self.path.resolve().name or str(self.path))


def find_videos(path: Path, argument: str = "folder") -> Folder:
    """The videos in a folder, not in those below it. A folder of frames counts where it has a sidecar.

    Raises UserError if there are none. argument: its name in errors.
    """
    if not path.exists():
        raise UserError(f"`{argument}` must be a folder of videos, got {str(path)!r}, which is not there")
    if not path.is_dir():
        raise UserError(
            f"`{argument}` must be a folder of videos, got the file {str(path)!r}; give its folder"
        )
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"`{argument}` {str(path)!r} cannot be read: {error.strerror or error}") from error
    found = [entry for entry in entries if _is_video(entry)]
    if not found:
        holds = f"{len(entries)} other files" if entries else "nothing"
        raise UserError(
            f"`{argument}` {str(path)!r} has no videos, it holds {holds}; give a folder of {', '.join(SUFFIXES)}"
        )
    stems = Counter(entry.stem for entry in found)
    videos, notes = [], []
    for entry in found:
        record, note = _record_of(entry)
        videos.append(Video(entry, _shown(entry.stem if stems[entry.stem] == 1 else entry.name), record))
        notes += [note] if note else []
    return Folder(path, tuple(videos), tuple(notes))


def _shown(name: str) -> str:
    """A name without what UTF-8 cannot say: names of files may be any bytes."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _is_video(entry: Path) -> bool:
    if entry.is_dir():
        return entry.with_name(f"{entry.name}.json").is_file() and any(entry.glob("*.png"))
    return entry.suffix.lower() in SUFFIXES


def _record_of(entry: Path) -> tuple[dict[str, Any], str]:
    """The record of a video's sidecar, or of the file itself; {} without. And a line on a sidecar that is not ours."""
    kind = "folder" if entry.is_dir() else KINDS.get(entry.suffix.lower(), "")
    note = ""
    for place in sidecars_of(entry, kind):
        if not place.is_file():
            continue
        try:
            record = read_sidecar(place)
            if record["output"]["file"] == entry.name:
                return record, ""
            note = f"{place.name} is about {record['output']['file']!r}, not {entry.name}: it is not used"
        except UserError as error:
            note = f"{entry.name} is judged without a prompt: {error}"
    if kind:
        try:
            return read_embedded(entry, kind), ""
        except UserError:
            pass  # most files of others say nothing
    return {}, note
