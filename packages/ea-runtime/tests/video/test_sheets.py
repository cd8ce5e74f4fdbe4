"""Contact sheets, and how they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ea_runtime.files import atomic
from ea_runtime.video.sheets import contact_sheet, write_sheet


def videos(count: int, length: int, side: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(1, 255, (count, length, side, side, 3), dtype=np.uint8)


def test_a_video_is_a_strip_of_frames_with_the_first_and_the_last() -> None:
    given = videos(2, 18)
    sheet = contact_sheet(given)
    strip = 9 * 17 - 1
    assert sheet.shape == (2 * (16 + 4) + 4, strip + 8, 3)
    assert sheet.dtype == np.uint8
    assert np.array_equal(sheet[4:20, 4:20], given[0, 0])
    assert np.array_equal(sheet[4:20, 4 + 8 * 17 : 20 + 8 * 17], given[0, 17])
    assert np.array_equal(sheet[24:40, 4:20], given[1, 0])
    assert np.array_equal(contact_sheet(given[:, :4])[4:20, 21:37], given[0, 1])


def test_pictures_make_a_square() -> None:
    given = videos(5, 1)
    sheet = contact_sheet(given)
    assert sheet.shape == (2 * 20 + 4, 3 * 20 + 4, 3)
    assert np.array_equal(sheet[24:40, 4:20], given[3, 0])
    assert contact_sheet(given, columns=5).shape == (24, 5 * 20 + 4, 3)
    assert contact_sheet(given[:1]).shape == (24, 24, 3)


def test_captions_stand_above_and_are_cut_to_three_lines() -> None:
    given = videos(2, 4, 32)
    short = contact_sheet(given, ["a", "b"])
    long = contact_sheet(given, ["a word " * 200, "b\n\tc"])
    assert short.shape[0] == 4 + 2 * (14 + 32 + 4)
    assert long.shape[0] == 4 + 2 * (3 * 12 + 2 + 32 + 4)
    assert (short[4:18, 4:40] < 128).any()  # ink
    assert np.array_equal(short[18:50, 4:36], given[0, 0])


@pytest.mark.parametrize(
    ("given", "captions", "words"),
    [
        (np.zeros((2, 16, 16, 3), np.uint8), [], r"`videos` must be uint8 \(N, T, H, W, 3\)"),
        (np.zeros((1, 1, 16, 16, 3), np.float32), [], "got float32"),
        (np.zeros((0, 1, 16, 16, 3), np.uint8), [], "none of them 0"),
        (np.zeros((2, 1, 16, 16, 3), np.uint8), ["a"], "`captions` must be 2 lines"),
    ],
)
def test_what_is_no_video(given: np.ndarray, captions: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        contact_sheet(given, captions)


def test_a_sheet_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "samples" / "step-5.png"
    array = contact_sheet(videos(1, 3))
    write_sheet(path, array)
    assert np.array_equal(np.asarray(Image.open(path)), array)

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_sheet(path, array[:8])
    assert [p.name for p in path.parent.iterdir()] == ["step-5.png"]
    assert np.array_equal(np.asarray(Image.open(path)), array)
    with pytest.raises(ValueError, match="a sheet must be uint8"):
        write_sheet(path, array[..., 0])
