"""Finds and reads the clips to check: drawn sets, generated files with their sidecars, frame folders."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ea_data.draw.check import ATTRIBUTES
from ea_runtime.files.safe import real_path
from ea_runtime.files.texts import lines_of, read_text
from ea_runtime.video import reader

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")
#: pictures that a video may be made from, as the settings of `ea generate` call them
GIVEN = ("image", "image_end")
IMAGE_SUFFIXES = (".gif", ".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class DrawnClip:
    """A clip to check: a file or a folder of frames, its prompt, and the truth if it is known.

    given: the pictures that it was made from, "image" and "image_end" of its sidecar, by the paths of their files.
    """

    path: Path
    prompt: str
    truth: dict[str, str] | None = None
    given: dict[str, Path] = field(default_factory=dict)


def read_frames(path: Path) -> np.ndarray:
    """Frames of a video, a GIF, a picture or a folder of pictures in name order: uint8 RGB (T, H, W, 3).

    Raises ValueError (UserError) with the path for what cannot be read.
    """
    frames = list(reader.read_frames(path))
    if not frames:
        raise ValueError(f"cannot read {path}: it holds no frames")
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"cannot read {path}: its frames differ in size")
    return np.stack(frames)


def read_given(clip: DrawnClip) -> dict[str, Any]:
    """The pictures that a clip was made from. Raises ValueError for one that is gone or cannot be read."""
    from ea_runtime.video.pictures import open_picture, to_rgb

    found: dict[str, Any] = {}
    for name, path in clip.given.items():
        try:
            with open_picture(path) as picture:
                found[name] = to_rgb(picture)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{clip.path} was made from {path} (`{name}`), which cannot be read: {error}; put it back there"
            ) from error
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _beneath(folder: Path, name: Any, listing: Path) -> Path:
    path = folder / str(name)
    try:
        is_beneath = real_path(path).is_relative_to(folder.resolve())
    except OSError:  # a loop of links
        is_beneath = False
    if not is_beneath:
        raise ValueError(f"{listing} names {name!r}, which is outside its folder")
    return path


def _from_truth(listing: Path) -> list[DrawnClip]:
    sources = []
    for number, line in enumerate(lines_of(read_text(listing)), start=1):
        try:
            item = json.loads(line)
            truth = {name: str(item["scene"][name]) for name in ATTRIBUTES}
            path = _beneath(listing.parent, item["file_path"], listing)
            sources.append(DrawnClip(path, item["caption"], truth))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"cannot read line {number} of {listing}: {error!r}") from error
    return sources


def _from_dataset(listing: Path) -> list[DrawnClip]:
    try:
        return [
            DrawnClip(_beneath(listing.parent, item["file_path"], listing), str(item["text"]))
            for item in _read_json(listing)
        ]
    except (KeyError, TypeError) as error:
        message = f"{listing} must be a list of objects with file_path and text, got {error!r}"
        raise ValueError(message) from error


def _of_sidecar(path: Path) -> DrawnClip | None:
    """A clip with the prompt and the pictures of its sidecar; None without one."""
    sidecar = path.with_suffix(".json") if path.is_file() else path.with_name(path.name + ".json")
    if not sidecar.is_file():
        return None
    found = _read_json(sidecar)
    settings: dict[str, Any] = {}
    if isinstance(found, dict):  # `ea generate` writes settings
        settings = found | (found["settings"] if isinstance(found.get("settings"), dict) else {})
    prompt = settings.get("prompt")
    if not isinstance(prompt, str):
        raise ValueError(f'{sidecar} must hold {{"prompt": "..."}} or the settings of `ea generate`')
    pictures = {name: settings[name] for name in GIVEN if isinstance(settings.get(name), str)}
    return DrawnClip(path, prompt, given={name: path.parent / at for name, at in pictures.items()})


def _is_clip(path: Path) -> bool:
    if path.is_dir():
        suffixes = (file.suffix.lower() for file in path.iterdir())
        return _of_sidecar(path) is not None and any(suffix in IMAGE_SUFFIXES for suffix in suffixes)
    return path.suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES


def _in_folder(folder: Path) -> tuple[list[DrawnClip], list[Path]]:
    if (folder / "truth.jsonl").is_file():
        return _from_truth(folder / "truth.jsonl"), []
    if (folder / "dataset.json").is_file():
        return _from_dataset(folder / "dataset.json"), []
    clips = {path: _of_sidecar(path) for path in sorted(folder.iterdir()) if _is_clip(path)}
    found = [clip for clip in clips.values() if clip is not None]
    return found, [path for path, clip in clips.items() if clip is None]


def find_sources(paths: Iterable[Path]) -> tuple[list[DrawnClip], list[Path]]:
    """The clips that `paths` name, and the media files skipped for lack of a prompt.

    A path is a drawn set, a folder of clips with sidecars (`clip.mp4` and `clip.json`; a folder of frames
    `clip/` and `clip.json`), a truth.jsonl, a dataset.json, or one clip. Raises ValueError if nothing can
    be checked.
    """
    sources: list[DrawnClip] = []
    skipped: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"there is no file or folder {path}")
        if path.suffix == ".jsonl":
            sources += _from_truth(path)
        elif path.suffix == ".json":
            sources += _from_dataset(path)
        elif (clip := _of_sidecar(path)) is not None:
            sources.append(clip)
        elif path.is_dir():
            found, passed = _in_folder(path)
            sources += found
            skipped += passed
        else:
            skipped.append(path)
    if not sources and skipped:
        raise ValueError(f"no prompt for {skipped[0]}; put one into a sidecar .json of the same stem")
    if not sources:
        raise ValueError("no clip to check; give clips with a sidecar .json next to each, or a drawn set")
    return sources, skipped
