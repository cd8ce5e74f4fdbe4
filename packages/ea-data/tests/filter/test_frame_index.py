"""FrameIndex: frames are found again, and a layout that very many share costs no more than a few."""

from __future__ import annotations

import numpy as np
import pytest

from ea_data.filter import frame_index
from ea_data.filter.frame_index import FrameIndex
from ea_data.media.signature import GRID


def clip(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, GRID, GRID)).astype(np.uint8)


def test_the_owner_of_like_frames_is_found():
    index = FrameIndex()
    for number in range(50):
        index.add(clip(number), number)
    nearly = np.clip(clip(7).astype(int) + np.random.default_rng(0).integers(-2, 3, (8, GRID, GRID)), 0, 255)
    assert index.find(nearly.astype(np.uint8))[0] == 7
    assert index.find(clip(1000)) == []


def test_of_a_layout_that_many_share_the_last_ones_are_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frame_index, "_LONGEST", 4)
    index = FrameIndex()
    for number in range(20):
        index.add(clip(0)[:1], number)
        index.add(clip(number + 1), 100 + number)
    assert index.find(clip(0)[:1]) == [16, 17, 18, 19]
    assert index.find(clip(1)) == [100]
