"""Captioners that read: `folder` (a .txt next to the video), `draw` (the drawn scene) and `none`."""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ea_data.caption.words import tidy
from ea_data.options import NoOptions, Options
from ea_data.protocols import Caption, FrameRequest, Frames
from ea_runtime.errors import UserError
from ea_runtime.files.texts import lines_of, read_text

_MOST_BYTES = 1 << 20


class FolderOptions(Options):
    """missing_text: the result for a video without a text: an "error", or an "empty" caption. suffix: of the text
    files; without one, .txt and .caption are looked for. max_words: longer captions are cut; 0: never.
    """

    missing_text: Literal["error", "empty"] = "error"
    suffix: str = Field("", pattern=r"^(\.[A-Za-z0-9]+)?$")
    max_words: int = Field(0, ge=0)


class _WithoutFrames:
    """Base of captioners that need no frames."""

    version = "1"
    needs = FrameRequest("none")

    def __init__(self, options: FolderOptions | NoOptions) -> None:
        self.options: Any = options


class FolderCaptioner(_WithoutFrames):
    """The text of `NAME.txt` next to `NAME.mp4`; every clip of a video gets the same.

    Also found: `NAME.caption`, `NAME.mp4.txt`, and suffixes in capitals. If there are several, the first of these.
    """

    version = "2"

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Caption:
        """Raises UserError if the file is missing (and must not be), too large, a link out, or no UTF-8 (or marked
        UTF-16)."""
        file = self._find(Path(record["path"]))
        if file is None:
            if self.options.missing_text == "empty":
                return Caption("", "folder")
            wanted = Path(record["path"]).with_suffix(self._suffixes[0])
            raise UserError(f"there is no caption {str(wanted)!r}; write one, or set missing_text = 'empty'")
        # A link could lead to any of the user's files, and its text would end up in the set.
        if file.resolve().parent != file.parent.resolve():
            raise UserError(
                f"{str(file)!r} is a link that leads out of its folder; put the text itself there"
            )
        if file.stat().st_size > _MOST_BYTES:
            raise UserError(f"{str(file)!r} is over {_MOST_BYTES} bytes, too long for a caption")
        try:
            text = read_text(file)
        except (OSError, ValueError) as error:
            raise UserError(f"{str(file)!r} cannot be read as text: {error}") from error
        return Caption(tidy(text, self.options.max_words), "folder")

    def reads(self, record: dict[str, Any]) -> str:
        """A hash of the text file's name and contents; "" without one."""
        file = self._find(Path(record["path"]))
        if file is None:
            return ""
        try:
            with file.open("rb") as opened:
                words = opened.read(_MOST_BYTES + 1)
        except OSError as error:
            words = str(error).encode()
        return sha256(file.name.encode("utf-8", "surrogateescape") + b"\0" + words).hexdigest()[:32]

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return (self.options.suffix,) if self.options.suffix else (".txt", ".caption")

    def _find(self, path: Path) -> Path | None:
        for suffix in self._suffixes:
            for written in dict.fromkeys((suffix, suffix.upper(), suffix.title())):
                for file in (path.with_suffix(written), path.with_name(path.name + written)):
                    if file.is_file():
                        return file
        return None


class DrawCaptioner(_WithoutFrames):
    """The captions of `ea data draw` and `ea data draw-raw`, from the truth.jsonl of their folder."""

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Caption:
        """For a video of several scenes: the caption of the scene that the clip shows most of.

        Raises UserError if no truth.jsonl in the video's folder, or in the two above it, names the video.
        """
        path = Path(record["path"])
        if item := _truth_of(path):
            return Caption(_caption_of(item, record), "draw")
        raise UserError(f"{str(path)!r} is in no truth.jsonl; the captioner 'draw' is for drawn videos")

    def reads(self, record: dict[str, Any]) -> str:
        """A hash of the video's entry in truth.jsonl; "" without one."""
        try:
            item = _truth_of(Path(record["path"]))
        except UserError as error:
            item = {"error": str(error)}
        return sha256(json.dumps(item).encode()).hexdigest()[:32] if item else ""


def _truth_of(path: Path) -> dict[str, Any] | None:
    for folder in list(path.parents)[:3]:
        listing = folder / "truth.jsonl"
        if listing.is_file():
            truth = _read_truth(listing, listing.stat().st_mtime_ns)
            if item := truth.get(path.relative_to(folder).as_posix()):
                return item
    return None


@lru_cache(maxsize=8)
def _read_truth(listing: Path, changed: int) -> dict[str, Any]:
    try:
        lines = lines_of(read_text(listing))
        return {str(item["file_path"]): item for item in map(json.loads, filter(str.strip, lines))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(listing)!r} cannot be read as the truth of a drawn set: {error!r}") from error


def _caption_of(item: dict[str, Any], record: dict[str, Any]) -> str:
    scenes = item.get("scenes")
    if not scenes:
        return str(item["caption"])
    start, end = (float(record[name]) * item["fps"] for name in ("start", "end"))

    def shown(scene: dict[str, Any]) -> float:
        return min(end, scene["end_frame"]) - max(start, scene["start_frame"])

    return str(max(scenes, key=shown)["caption"])


class NoneCaptioner(_WithoutFrames):
    """Empty captions."""

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Caption:
        return Caption("", "none")
