"""Pictures of every kind give the colours that they were saved with, upright, in 8 bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ea_runtime.errors import UserError
from ea_runtime.video.pictures import (
    PICTURE_SUFFIXES,
    open_picture,
    picture_size,
    read_colour,
    rgb_frames,
    shown,
    to_rgb,
)
from ea_runtime.video.reader import read_frames

GREY = np.arange(40 * 50, dtype=np.int64).reshape(40, 50) % 256  # every level of 8 bits
RED = np.zeros((40, 50, 3), np.uint8)
RED[:, :25] = (200, 30, 40)


def read(path: Path, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a stray line on the screen is a fault too
        with open_picture(path) as picture:
            size = picture_size(picture)
            pixels = np.asarray(to_rgb(picture, background))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (size[1], size[0], 3)
    return pixels


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("16.png", (GREY * 257).astype(np.uint16)),
        ("16.tif", (GREY * 257).astype(np.uint16)),
        ("32_of_8.tif", GREY.astype(np.int32)),
        ("32_of_16.tif", (GREY * 257).astype(np.int32)),
        ("32.tif", (GREY * ((2**31 - 1) // 255)).astype(np.int32)),
        ("float_1.tif", (GREY / 255).astype(np.float32)),
        ("float_255.tif", GREY.astype(np.float32)),
        ("float_65535.tif", (GREY * 257).astype(np.float32)),
        ("8.png", GREY.astype(np.uint8)),
    ],
)
def test_grey_of_every_depth(name: str, values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / name)
    assert np.array_equal(read(tmp_path / name), np.repeat(GREY[:, :, None], 3, 2))


@pytest.mark.parametrize("values", [-1.0, 70_000.0, float("nan"), float("inf")])
def test_grey_of_no_known_range_is_refused(values: float, tmp_path: Path) -> None:
    pixels = np.full((4, 4), 0.5, np.float32)
    pixels[1, 1] = values
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"^it holds grey from .* save it with 8 or 16 bits"):
        read(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif.*grey from"):
        list(read_frames(tmp_path / "a.tif"))


def rgba(path: Path) -> None:
    # what is transparent holds garbage, as editors leave it
    alpha = np.where(RED[:, :, :1] > 0, 255, 0).astype(np.uint8)
    Image.fromarray(np.concatenate([np.where(alpha > 0, RED, 77), alpha], 2).astype(np.uint8)).save(path)


def palette(path: Path, **options: int | bytes) -> None:
    picture = Image.fromarray((RED[:, :, 0] > 0).astype(np.uint8)).convert("P")
    picture.putpalette([9, 99, 9, 200, 30, 40])
    picture.save(path, **options)


def keyed(path: Path) -> None:
    """A colour that counts as transparent, without an alpha channel."""
    Image.fromarray(RED).save(path, transparency=(0, 0, 0))


TRANSPARENT: list[tuple[str, Callable[[Path], None]]] = [
    ("rgba.png", rgba),
    ("rgba.tif", rgba),
    ("index.png", lambda path: palette(path, transparency=0)),
    ("bytes.png", lambda path: palette(path, transparency=b"\x00\xff")),
    ("index.gif", lambda path: palette(path, transparency=0)),
    ("keyed.png", keyed),
]


@pytest.mark.parametrize(("name", "write"), TRANSPARENT)
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 120, 200)])
def test_transparency_is_laid_on_the_background(
    name: str, write: Callable[[Path], None], background: tuple[int, int, int], tmp_path: Path
) -> None:
    write(tmp_path / name)
    expected = np.where(RED[:, :, :1] > 0, RED, np.array(background, np.uint8))
    assert np.array_equal(read(tmp_path / name, background), expected)


def test_grey_with_transparency(tmp_path: Path) -> None:
    alpha = np.full((40, 50), 128, np.uint8)
    Image.merge("LA", (Image.new("L", (50, 40), 0), Image.fromarray(alpha))).save(tmp_path / "la.png")
    assert set(np.unique(read(tmp_path / "la.png"))) == {127}
    Image.fromarray((GREY * 257).astype(np.uint16)).save(tmp_path / "key.png", transparency=5 * 257)
    assert np.array_equal(read(tmp_path / "key.png")[:, :, 0], np.where(GREY == 5, 255, GREY))


def test_other_modes(tmp_path: Path) -> None:
    Image.fromarray(RED).convert("CMYK").save(tmp_path / "cmyk.tif")
    assert np.array_equal(read(tmp_path / "cmyk.tif"), RED)
    Image.fromarray(RED).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(read(tmp_path / "cmyk.jpg").astype(int) - RED).mean() < 4
    palette(tmp_path / "p.png")
    assert np.array_equal(read(tmp_path / "p.png"), np.where(RED[:, :, :1] > 0, RED, [9, 99, 9]))
    Image.fromarray(RED[:, :, 0] > 0).save(tmp_path / "bits.png")
    assert np.array_equal(read(tmp_path / "bits.png")[:, :, 1], np.where(RED[:, :, 0] > 0, 255, 0))


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation(form: str, orientation: int, tmp_path: Path) -> None:
    corners = np.zeros((32, 64, 3), np.uint8)
    corners[:16, :32], corners[:16, 32:], corners[16:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    # EXIF says how to turn what is stored, so the inverse is stored
    turned = [
        corners,
        corners[:, ::-1],
        corners[::-1, ::-1],
        corners[::-1],
        corners.swapaxes(0, 1),
        np.rot90(corners),
        corners[::-1, ::-1].swapaxes(0, 1),
        np.rot90(corners, -1),
    ][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{form}"
    Image.fromarray(np.ascontiguousarray(turned)).save(path, exif=exif, quality=95)
    pixels = read(path)
    assert pixels.shape == corners.shape
    assert np.abs(pixels.astype(int) - corners).mean() < 8


def test_a_damaged_exif_block_costs_nothing(tmp_path: Path) -> None:
    Image.fromarray(RED).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
    assert np.array_equal(read(tmp_path / "a.png"), RED)


def test_animated(tmp_path: Path) -> None:
    """A picture shows its first frame; all of them are there for those who want a clip."""
    for name in ("a.gif", "a.webp", "a.png"):
        frames = [Image.new("RGB", (32, 32), (50 * i, 0, 0)) for i in range(3)]
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert read(tmp_path / name)[0, 0, 0] == 0
        with open_picture(tmp_path / name) as picture:
            reds = [np.asarray(frame)[0, 0, 0] for frame in rgb_frames(picture)]
        assert reds == [0, 50, 100]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.tif", "a.bmp"])
def test_what_is_cut_off_is_one_line(name: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for size in (0, 3, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(UserError) as caught:
            list(read_frames(tmp_path / name))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "object at" not in str(caught.value)
        assert "_io." not in str(caught.value)


def test_suffixes() -> None:
    assert {".jfif", ".jpe", ".jpg", ".png", ".webp"} <= PICTURE_SUFFIXES


def test_transparency_can_be_kept(tmp_path: Path) -> None:
    rgba(tmp_path / "a.png")
    with open_picture(tmp_path / "a.png") as picture:
        assert shown(picture).mode == "RGBA"


def test_colours() -> None:
    assert read_colour("white") == (255, 255, 255)
    assert read_colour("#0a78c8") == (10, 120, 200)
    with pytest.raises(ValueError, match="must be a colour such as 'white' or '#808080'"):
        read_colour("wite")
