"""One video as metrics see it: its frames, decoded once, and what several metrics measure alike.

Shape legend: T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ea_runtime.errors import UserError
from ea_runtime.video.measures import grey
from ea_runtime.video.reader import read_frames

#: bytes of a video's frames: all are in memory at once
MAX_BYTES = 2 << 30
#: rows and columns of the cells whose colours are followed
CELLS = 4
#: pixels of a side of the blocks in which frames are compared
BLOCK = 8


@dataclass(frozen=True)
class Clip:
    """A decoded video. frames: uint8 (T, H, W, 3) in sRGB. record: of its sidecar; {} without one.

    reference: the video of this name in the other folder, if the metric is one of pairs.
    """

    name: str
    frames: np.ndarray
    path: Path = Path()
    record: Mapping[str, Any] = field(default_factory=dict)
    reference: Clip | None = None

    @property
    def prompt(self) -> str | None:
        """The prompt that the sidecar names; None without one."""
        return self.record.get("settings", {}).get("prompt")

    @cached_property
    def luma(self) -> np.ndarray:
        """(T, H, W) float32 in 0..1."""
        return np.stack([grey(frame) for frame in self.frames])

    @cached_property
    def cells(self) -> np.ndarray:
        """Mean colours of 4x4 cells of each frame: (T, 4, 4, 3), 0..255."""
        rows, columns = (
            np.linspace(0, side, min(CELLS, side) + 1).astype(int) for side in self.frames.shape[1:3]
        )
        return np.stack(
            [
                [
                    frame[top:bottom, left:right].mean((0, 1), dtype=np.float64)
                    for left, right in pairwise(columns)
                ]
                for frame in self.frames
                for top, bottom in pairwise(rows)
            ]
        ).reshape(len(self.frames), len(rows) - 1, len(columns) - 1, 3)

    @cached_property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Absolute differences of each frame to the one before, levels of 255: the mean, and that of the block of 8x8
        pixels that differs most. Both (T - 1,).
        """
        pairs = [step(one, other) for one, other in pairwise(self.frames)]
        means, most = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(means), np.array(most)


def step(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The mean absolute difference of two frames (H, W, 3), in levels, and that of the block that differs most."""
    differences = np.maximum(one, other) - np.minimum(one, other)  # H W 3, uint8
    tops, lefts = (np.arange(0, side, BLOCK) for side in one.shape[:2])
    rows = np.add.reduceat(differences, tops, axis=0, dtype=np.float32)
    sums = np.add.reduceat(rows, lefts, axis=1).sum(-1)  # h w
    high, wide = np.minimum(BLOCK, one.shape[0] - tops), np.minimum(BLOCK, one.shape[1] - lefts)
    return float(sums.sum(dtype=np.float64) / one.size), float((sums / (3 * high[:, None] * wide)).max())


def read_clip(path: Path, name: str = "", record: Mapping[str, Any] | None = None) -> Clip:
    """A video, gif or folder of frames, decoded. Raises UserError, one line, for what cannot be read."""
    frames: list[np.ndarray] = []
    size = 0
    for frame in read_frames(path):
        frames.append(frame)
        size += frame.nbytes
        if size > MAX_BYTES:
            raise UserError(
                f"{str(path)!r} has more than {MAX_BYTES >> 30} GiB of frames, which are judged together; cut it"
            )
        if frame.shape != frames[0].shape:
            raise UserError(f"{str(path)!r} has frames of several sizes; scale them to one")
    if not frames:
        raise UserError(f"{str(path)!r} holds no frames")
    return Clip(name or path.name, np.stack(frames), path, record or {})
