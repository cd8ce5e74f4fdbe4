"""Keys of latents depend on the appearance of the frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from ea_runtime.training.data.dataset import Item, TrainingSet
from ea_runtime.training.latents.keys import Contents

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


class Files:
    """The part of a set that keys need."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def item(self, index: int) -> Item:
        return Item(self.paths[index], "", False, 0, 0)


def test_another_background_is_another_picture_and_the_same_video(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.GIF", tmp_path / "c.mp4"]
    for path in paths:
        path.write_bytes(path.name.encode())
    files = cast(TrainingSet, Files(paths))
    white, again, black = (Contents(files, tmp_path, colour).hashes for colour in (WHITE, WHITE, BLACK))
    assert np.array_equal(white, again)
    assert (white != black).tolist() == [True, True, False]
