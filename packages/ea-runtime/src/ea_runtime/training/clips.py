"""A training set in EasyAnimate's JSON: pictures and clips with captions, decoded once and kept as bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from ea_runtime.errors import UserError
from ea_runtime.safe_files import quote


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of dataset.json. `path` is absolute and lies beneath the set's folder."""

    path: Path
    text: str
    is_video: bool
    width: int
    height: int


class ClipSet:
    """Reads a set's dataset.json (`file_path`, `text`, `type`, `width`, `height`) and decodes on demand.

    Frames come back as uint8 (T, H, W, 3) and are kept in memory up to `keep_bytes`, so that an epoch after
    the first decodes nothing while they fit.
    """

    def __init__(self, folder: Path, keep_bytes: int = 8 << 30) -> None:
        self.folder = folder.resolve()
        self.items = read_items(self.folder)
        self._kept: dict[int, np.ndarray] = {}
        self._room = keep_bytes

    def __len__(self) -> int:
        return len(self.items)

    def frames(self, index: int) -> np.ndarray:
        """uint8 (T, H, W, 3); T is 1 for a picture. Raises UserError naming a file that cannot be decoded."""
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        frames = self._decode(self.items[index])
        if frames.nbytes <= self._room:
            self._room -= frames.nbytes
            self._kept[index] = frames
        return frames

    def _decode(self, item: Item) -> np.ndarray:
        from ea_runtime.video import read_frames

        try:
            if item.path.is_dir():
                raise UserError("it is a folder")
            decoded = list(read_frames(item.path))
            if not decoded:
                raise UserError("it holds no frames")
            frames = np.stack(decoded)
        except (OSError, ValueError) as error:
            raise UserError(f"{item.path.name} of {str(self.folder)!r} cannot be decoded: {error}") from error
        height, width = frames.shape[1:3]
        if item.width and item.height and (width, height) != (item.width, item.height):
            raise UserError(
                f"{item.path.name} of {str(self.folder)!r} is {width}x{height}, but dataset.json says "
                f"{item.width}x{item.height}; correct its entry"
            )
        return frames

    def choose(self, kinds: Literal["both", "videos", "pictures"]) -> list[int]:
        """Indices of the items of that kind. Raises UserError where there are none."""
        chosen = [
            i for i, item in enumerate(self.items) if kinds == "both" or item.is_video == (kinds == "videos")
        ]
        if not chosen:
            raise UserError(
                f"`data.kinds` is {kinds!r}, but {str(self.folder)!r} has none; draw some or choose 'both'"
            )
        return chosen


def read_items(folder: Path) -> list[Item]:
    """The entries of `folder`/dataset.json, checked; no file but that is opened.

    Raises UserError, one line: no dataset.json, no JSON in it, an empty list, an entry without `file_path` or
    `text`, a path that leaves the folder (also through a link).
    """
    folder = folder.resolve()
    path = folder / "dataset.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"`data.path` must be a set with a dataset.json, got {str(folder)!r}; "
            "make one with `ea data draw`"
        ) from None
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is not valid JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        got = "an empty list" if rows == [] else type(rows).__name__
        raise UserError(f"{str(path)!r} must be a list of entries, got {got}")
    return [_item(folder, number, row) for number, row in enumerate(rows)]


def _item(folder: Path, number: int, row: object) -> Item:
    where = f"entry {number} of {str(folder / 'dataset.json')!r}"
    if not isinstance(row, dict):
        raise UserError(f"{where} must be an object, got {type(row).__name__}")
    for key in ("file_path", "text"):
        if not isinstance(row.get(key), str):
            got = quote(row[key]) if key in row else "nothing"
            raise UserError(f"{where}: `{key}` must be a string, got {got}")
    kind = row.get("type", "image")
    if kind not in ("image", "video"):
        raise UserError(f"{where}: `type` must be 'image' or 'video', got {quote(kind)}")
    relative = PurePosixPath(row["file_path"])
    path = folder / relative
    if not relative.parts or "\0" in row["file_path"]:
        raise UserError(f"{where}: `file_path` must name a file, got {quote(row['file_path'])}")
    if relative.is_absolute() or ".." in relative.parts or not path.resolve().is_relative_to(folder):
        raise UserError(f"{where}: `file_path` must stay beneath the set, got {quote(row['file_path'])}")
    width, height = (_pixels(where, key, row.get(key)) for key in ("width", "height"))
    return Item(path, row["text"], kind == "video", width, height)


def _pixels(where: str, key: str, value: object) -> int:
    """A size of an entry; 0 where it says none."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 20:
        raise UserError(f"{where}: `{key}` must be a number of pixels, got {quote(value)}")
    return int(value)


def to_float(frames: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 clips (T, H, W, 3) of one shape -> float32 (B, 3, T, H, W) in -1..1.

    Raises UserError where their shapes differ.
    """
    shapes = {clip.shape[:3] for clip in frames}
    if len(shapes) > 1:
        (t, h, w), (t2, h2, w2) = sorted(shapes)[:2]
        raise UserError(
            f"clips of a batch must be of one size, got {t} frames of {w}x{h} and {t2} of {w2}x{h2}; "
            "write each one's `width` and `height` into dataset.json, or use a set of one size"
        )
    stacked = np.stack(frames)
    return np.ascontiguousarray(stacked.transpose(0, 4, 1, 2, 3)).astype(np.float32) / 127.5 - 1.0
