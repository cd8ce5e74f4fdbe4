"""Decoded frames of an unfinished run: raw bytes in one file, a hash for each frame in another.

    frames.raw     frames one after the other, H * W * 3 bytes each, from frame FIRST on
    frames.jsonl   for each of them {"frame": n, "sha256": ..., "is_tiled": ...}

A frame counts once its line is there and its bytes have that hash, so a kill at any time loses at most the last one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

RAW, INDEX = "frames.raw", "frames.jsonl"


class SavedFrames:
    """Frames `first` to `stop` - 1 of a video of height x width. Opening drops what is damaged or incomplete.

    is_tiled: the last of them was decoded in tiles, as memory had run out. damaged: the first frame that is there but
    not what was saved, if any. Raises OSError.
    """

    first: int
    stop: int

    def __init__(self, folder: Path, height: int, width: int) -> None:
        self.shape = (height, width, 3)
        self.is_tiled = False
        self.damaged: int | None = None
        self._raw, self._index = folder / RAW, folder / INDEX
        self._size = height * width * 3
        self._check()

    def read(self) -> Iterator[np.ndarray]:
        """Each frame, (H, W, 3) uint8."""
        with self._raw.open("rb") as file:
            for _ in range(self.first, self.stop):
                yield np.frombuffer(bytearray(file.read(self._size)), np.uint8).reshape(self.shape)

    def append(self, number: int, frame: np.ndarray, is_tiled: bool) -> None:
        """Frame `number`, the one after the last; the first one may have any number."""
        if self.first == self.stop:
            self._clear()
            self.first = self.stop = number
        assert number == self.stop, "frames come in order"
        data = np.ascontiguousarray(frame).tobytes()
        line = {"frame": number, "sha256": hashlib.sha256(data).hexdigest(), "is_tiled": is_tiled}
        with self._raw.open("ab") as file:
            file.write(data)
        with self._index.open("ab") as file:  # after the bytes that it vouches for
            file.write(json.dumps(line).encode() + b"\n")
        self.stop, self.is_tiled = number + 1, is_tiled

    def _check(self) -> None:
        lines = self._lines()
        if not lines:
            return self._clear()
        good: list[bytes] = []
        with self._raw.open("rb") as file:
            for text, number, digest, is_tiled in lines:
                data = file.read(self._size)
                if len(data) < self._size or hashlib.sha256(data).hexdigest() != digest:
                    self.damaged = number
                    break
                good.append(text)
                self.stop, self.is_tiled = number + 1, is_tiled
        if not good:
            return self._clear()
        self.first = lines[0][1]
        with self._raw.open("r+b") as file:
            file.truncate(len(good) * self._size)
        self._index.write_bytes(b"".join(text + b"\n" for text in good))
        return None

    def _lines(self) -> list[tuple[bytes, int, str, bool]]:
        """The lines of the index up to the first that is none, or not about the next frame."""
        if not self._raw.is_file() or not self._index.is_file():
            return []
        found: list[tuple[bytes, int, str, bool]] = []
        for text in self._index.read_bytes().split(b"\n")[:-1]:
            try:
                line = json.loads(text)
                number, digest, is_tiled = line["frame"], str(line["sha256"]), bool(line["is_tiled"])
            except (ValueError, KeyError, TypeError, RecursionError):
                break
            if type(number) is not int or number < 0 or (found and number != found[-1][1] + 1):
                break
            found.append((text, number, digest, is_tiled))
        return found

    def _clear(self) -> None:
        self.first = self.stop = 0
        for path in (self._raw, self._index):
            with suppress(FileNotFoundError):
                path.unlink()
