"""A training set in EasyAnimate's JSON: pictures and clips with captions, decoded once and kept as bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from ea_runtime.errors import UserError


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
        from ea_runtime.video import read_frames

        item = self.items[index]
        try:
            frames = np.stack(list(read_frames(item.path)))
        except (OSError, ValueError) as error:
            raise UserError(f"{item.path.name} of {str(self.folder)!r} cannot be decoded: {error}") from error
        if frames.nbytes <= self._room:
            self._room -= frames.nbytes
            self._kept[index] = frames
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
    """The entries of `folder`/dataset.json, checked. Paths that leave the folder are refused."""
    path = folder / "dataset.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"`data.path` must be a set with a dataset.json, got {str(folder)!r}; make one with `ea data draw`"
        ) from None
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not valid JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(
            f"{str(path)!r} must be a list of entries, got {'an empty list' if rows == [] else type(rows).__name__}"
        )
    return [_item(folder, number, row) for number, row in enumerate(rows)]


def _item(folder: Path, number: int, row: object) -> Item:
    where = f"entry {number} of {str(folder / 'dataset.json')!r}"
    if not isinstance(row, dict):
        raise UserError(f"{where} must be an object, got {type(row).__name__}")
    for key, kind in (("file_path", str), ("text", str)):
        if not isinstance(row.get(key), kind):
            raise UserError(f"{where}: `{key}` must be a string, got {row.get(key)!r}")
    if row.get("type", "image") not in ("image", "video"):
        raise UserError(f"{where}: `type` must be 'image' or 'video', got {row['type']!r}")
    relative = PurePosixPath(row["file_path"])
    path = folder / relative
    if relative.is_absolute() or ".." in relative.parts or not path.resolve().is_relative_to(folder):
        raise UserError(f"{where}: `file_path` must stay beneath the set, got {row['file_path']!r}")
    return Item(
        path,
        row["text"],
        row.get("type", "image") == "video",
        int(row.get("width", 0)),
        int(row.get("height", 0)),
    )


def to_float(frames: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 clips (T, H, W, 3) of one shape -> float32 (B, 3, T, H, W) in -1..1."""
    stacked = np.stack(frames)
    return np.ascontiguousarray(stacked.transpose(0, 4, 1, 2, 3)).astype(np.float32) / 127.5 - 1.0
