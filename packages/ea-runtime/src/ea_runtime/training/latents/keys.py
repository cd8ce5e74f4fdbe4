"""Keys of the latents and text features in a cache: hashes of the contents that they were made from.

A window's key is the hash of its file's contents, mixed with the window's position and shape; a caption's is its own
hash. Their folder is named by the hash of the weights and configs that made them. So a changed file, caption or model
finds nothing, and unchanged contents are found under any file name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ea_runtime.errors import UserError
from ea_runtime.files.hashes import file_hash
from ea_runtime.files.remembered import Remembered
from ea_runtime.files.safe import is_file
from ea_runtime.models.hash import folders_hash
from ea_runtime.models.layout import resolve_folder
from ea_runtime.training.data.dataset import TrainingSet
from ea_runtime.training.data.draws import scramble
from ea_runtime.training.latents.store import KEY
from ea_runtime.video.pictures import PICTURE_SUFFIXES, Colour

#: Raised whenever the same inputs would be encoded differently.
VERSION = 3
#: The same of pictures alone: how their files are read.
PICTURES = 2


class Contents:
    """The contents of a set's files. hashes: (N,) of type KEY, one per sample; `bad`: sample -> (path, reason).

    background: what is behind transparent pictures, red, green and blue.
    """

    def __init__(self, data: TrainingSet, root: Path, background: Colour) -> None:
        self.hashes = np.zeros(len(data), dtype=KEY)
        self.bad: dict[int, tuple[str, str]] = {}
        remembered = Remembered(root, "contents", version=1)
        seen: dict[Path, int] = {}  # a repeated video is read once
        for index in range(len(data)):
            path = data.item(index).path
            first = seen.setdefault(path, index)
            if first < index:
                self.hashes[index] = self.hashes[first]
                if first in self.bad:
                    self.bad[index] = self.bad[first]
                continue
            try:
                digest = _digest(path, root, remembered)
                if path.suffix.lower() in PICTURE_SUFFIXES:
                    digest = hashlib.sha256(digest + f"{PICTURES} {background}".encode()).digest()
                self.hashes[index] = _halves(digest)
            except OSError as error:
                name = str(path.relative_to(root)) if path.is_relative_to(root) else path.name
                self.bad[index] = (name, f"it cannot be read: {error.strerror or error}")
        remembered.save()

    def keys(
        self,
        indices: Sequence[int] | np.ndarray,
        starts: np.ndarray,
        frames: int,
        height: int,
        width: int,
        stride: int,
    ) -> np.ndarray:
        """Keys (N,) of windows: of sample indices[i], `frames` frames from starts[i], cut to height x width."""
        mixed = self.hashes[np.asarray(indices, dtype=np.int64)]
        shape = f"{frames}:{height}:{width}:{stride if frames > 1 else 1}"
        salt = _halves(hashlib.sha256(shape.encode()).digest())
        spread = np.asarray(starts, dtype=np.uint64)
        mixed["high"] ^= scramble(spread + np.uint64(salt[0] >> 1))
        mixed["low"] ^= scramble(spread + np.uint64(salt[1] >> 1))
        return mixed


def text_keys(captions: Iterable[str]) -> np.ndarray:
    """Keys (N,) of captions."""
    halves = [_halves(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()) for text in captions]
    return np.array(halves, dtype=KEY)


def latents_folder(cache: Path, parts: str, coding: str) -> Path:
    """The folder of this VAE's latents. Raises UserError for a model folder without one."""
    return cache / f"latents-{_folder_key(parts, coding, 'vae')}"


def text_folder(cache: Path, parts: str, coding: str) -> Path:
    """The folder of this text encoder's features. Raises UserError for a model folder without one."""
    return cache / f"text-{_folder_key(parts, coding, 'text_encoder', 'tokenizer')}"


def hex_key(key: Any) -> str:
    """A key as text."""
    return f"{int(key[0]):016x}{int(key[1]):016x}"


def _folder_key(parts: str, coding: str, *folders: str) -> str:
    for name in folders:
        if not (resolve_folder(parts) / name).is_dir():
            raise UserError(
                f"`data.parts` must be a model folder with {name}/, got {parts!r}, which has none"
            )
    return hashlib.sha256(f"{VERSION}:{coding}:{folders_hash(parts, *folders)}".encode()).hexdigest()[:16]


def _digest(path: Path, root: Path, remembered: Remembered) -> bytes:
    """sha256 of a file, read again only if its size or time changed."""
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    known = remembered.get(name)
    if isinstance(known, str) and len(known) == 64:
        return bytes.fromhex(known)
    if not is_file(path):  # a pipe would block
        raise OSError("there is no such file" if not path.exists() else "it is no regular file")
    digest = file_hash(path)
    remembered.put(name, digest)
    return bytes.fromhex(digest)


def _halves(digest: bytes) -> tuple[int, int]:
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")
