from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ea_data.draw.caption import caption
from ea_data.draw.check import check_clip
from ea_data.draw.scene import render, sample_scene
from ea_data.draw.sheet import _WRONG, contact_sheet, save_sheet


def _clips(count: int, wrong: bool = False) -> list:
    clips = []
    for index in range(count):
        scene = sample_scene(3, index)
        frames = render(scene)
        prompt = "a purple triangle" if wrong else caption(scene, 3, index, is_full=True)
        clips.append((check_clip(prompt, frames), frames))
    return clips


def test_sheet_shows_the_frames_in_two_columns() -> None:
    sheet = np.asarray(contact_sheet(_clips(3)))
    assert sheet.shape[0] > 2 * 96
    assert sheet.shape[1] > 12 * 96
    assert not (sheet == np.array(_WRONG)).all(-1).any()


def test_what_is_wrong_stands_in_red() -> None:
    clips = [clip for clip in _clips(6, wrong=True) if not all(clip[0].right.values())][:1]
    sheet = np.asarray(contact_sheet(clips)).astype(int)
    assert (np.abs(sheet - np.array(_WRONG)).sum(-1) < 60).any()


def test_only_png(tmp_path: Path) -> None:
    save_sheet(tmp_path / "a.png", _clips(1))
    assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"must end in \.png"):
        save_sheet(tmp_path / "a.gif", _clips(1))
