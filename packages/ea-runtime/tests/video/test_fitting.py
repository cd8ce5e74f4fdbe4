"""Pictures brought to a size, by pixels: what each way keeps, cuts off or adds."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ea_runtime.errors import UserError
from ea_runtime.video.fitting import FITS, check_fit, fitted, lost_share, size_like
from ea_runtime.video.limits import check_limits

#: 8 wide, 4 high: red on the left, blue on the right
HALVES = np.zeros((4, 8, 3), np.uint8)
HALVES[:, :4, 0], HALVES[:, 4:, 2] = 255, 255


def test_the_three_ways() -> None:
    assert [check_fit(word) for word in FITS] == ["crop", "pad", "stretch"]
    with pytest.raises(UserError, match="`fit` must be one of crop, pad, stretch, got 'cover'"):
        check_fit("cover")


def test_what_each_way_does_with_a_wide_picture() -> None:
    picture = Image.fromarray(HALVES)
    assert fitted(picture, 8, 4, "pad") is picture
    cropped = np.asarray(fitted(picture, 4, 4))
    assert np.array_equal(cropped, HALVES[:, 2:6])  # the middle
    stretched = np.asarray(fitted(picture, 4, 8, "stretch"))
    assert stretched.shape == (8, 4, 3)
    assert (stretched[:, 0, 0] > 250).all()
    assert (stretched[:, -1, 2] > 250).all()
    padded = np.asarray(fitted(picture, 8, 8, "pad", (1, 2, 3)))
    assert np.array_equal(padded[2:6], HALVES)
    assert (padded[[0, 1, 6, 7]] == (1, 2, 3)).all()
    assert (np.asarray(fitted(picture, 8, 8, "pad"))[0] == 0).all()
    grey = np.asarray(fitted(picture.convert("L"), 8, 8, "pad", (9, 8, 7)))
    assert (grey[0] == 9).all()
    assert np.array_equal(grey[2:6], np.asarray(picture.convert("L")))


@pytest.mark.parametrize(
    ("size", "width", "height", "lost"),
    [
        ((8, 4), 4, 4, 0.5),
        ((4, 8), 4, 4, 0.5),
        ((8, 4), 16, 8, 0),
        ((16, 9), 4, 3, 0.25),
        ((4, 3), 16, 9, 0.25),
    ],
)
def test_the_share_that_is_cut_off(size: tuple[int, int], width: int, height: int, lost: float) -> None:
    assert lost_share(size, width, height) == pytest.approx(lost)


@pytest.mark.parametrize(
    ("size", "pixels", "multiple", "expected"),
    [
        ((512, 512), 512 * 512, 16, (512, 512)),
        ((1920, 1080), 384 * 672, 16, (672, 384)),
        ((1080, 1920), 384 * 672, 16, (384, 672)),
        ((1000, 10), 64 * 64, 16, (640, 16)),
        ((3, 2), 100, 64, (64, 64)),
        ((4, 3), 300 * 300, 64, (320, 256)),
        ((4, 3), 200 * 200, 64, (256, 192)),
    ],
)
def test_a_size_like_that_of_a_picture(
    size: tuple[int, int], pixels: int, multiple: int, expected: tuple[int, int]
) -> None:
    assert size_like(size, pixels, multiple) == expected


@pytest.mark.parametrize(
    ("kind", "most"), [("mp4", 16_384), ("mov", 16_384), ("webm", 65_534), ("webp", 16_383), ("gif", 65_535)]
)
def test_the_largest_side_of_each_kind(kind: str, most: int) -> None:
    check_limits(kind, most, 16, 24)
    check_limits("png", most + 1, 16, 24)
    for width, height in ((most + 1, 16), (16, most + 1)):
        with pytest.raises(
            UserError, match=rf"\.{kind} holds at most {most:,} pixels a side, got {width}x{height};"
        ):
            check_limits(kind, width, height, 24)


def test_the_slowest_gif() -> None:
    check_limits("gif", 16, 16, 100 / 65_534)
    check_limits("mp4", 16, 16, 100 / 65_536)
    for fps in (100 / 65_535, 100 / 65_536):
        with pytest.raises(UserError, match=r"`fps` must be above 0\.00153 for \.gif, got 0\.0015"):
            check_limits("gif", 16, 16, fps)
