"""Reads pictures of every kind as upright 8-bit RGB: 16-bit, integer and float grey, CMYK, palettes, transparency.

The one reader of a raw folder, a training set, and pictures that a generation starts from.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

#: Pillow's formats that run no other program.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
#: Of files of these formats, in lower case.
PICTURE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
)

Colour = tuple[int, int, int]
#: Where a picture is transparent, it shows this.
BACKGROUND = "white"

_ORIENTATION = 0x0112  # EXIF's tag
_SIDEWAYS = (5, 6, 7, 8)
#: White in each of Pillow's modes of grey: the smallest that holds a picture's largest value.
_RANGES = {"I;16": (65_535,), "I": (255, 65_535, 2**31 - 1), "F": (1, 255, 65_535)}


def read_colour(text: str) -> Colour:
    """Red, green and blue, 0 to 255, of a colour's name or #rrggbb. Raises ValueError."""
    from PIL import ImageColor

    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise ValueError("must be a colour such as 'white' or '#808080'") from None
    return red, green, blue


@contextmanager
def open_picture(file: BinaryIO | Path) -> Iterator[Image.Image]:
    """An open file as a picture, not yet decoded. Raises ValueError if it is none, and Pillow's other errors."""
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(file, formats=PICTURE_FORMATS)
    except UnidentifiedImageError:
        formats = ", ".join(PICTURE_FORMATS)
        raise ValueError(f"damaged, or no picture of these kinds: {formats}") from None
    with picture:
        yield picture


def picture_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) once the picture is upright. Decodes TIFF on its side, which Pillow turns by itself."""
    if _orientation(picture) not in _SIDEWAYS:
        return picture.size
    if picture.format == "TIFF":
        picture.load()
        return picture.size
    width, height = picture.size
    return height, width


def is_upright(picture: Image.Image) -> bool:
    """True if the pixels are shown as they are stored."""
    return _orientation(picture) == 1


def shown(picture: Image.Image) -> Image.Image:
    """A picture's frame, upright, in mode RGB, or RGBA if parts of it are transparent.

    Grey of 16 bits is scaled to 8; that of 32-bit integers by the smallest of 255, 65,535 and 2^31 - 1 that holds
    its largest value, floats likewise by 1, 255 or 65,535. Raises ValueError for values outside of these.
    """
    import numpy as np
    from PIL import Image

    picture.load()
    turned = _upright(picture)
    if turned.mode[0] not in "IF":
        return turned.convert("RGBA" if turned.has_transparency_data else "RGB")
    values = np.asarray(turned)
    grey = Image.fromarray(_to_8_bits(values, turned.mode))
    key = turned.info.get("transparency")
    if key is None:
        return grey.convert("RGB")
    # one of 65,536 levels is transparent, which 8 bits cannot tell from its neighbours
    opaque = Image.fromarray((values != key).astype(np.uint8) * 255)
    return Image.merge("RGBA", (grey, grey, grey, opaque))


def to_rgb(picture: Image.Image, background: Colour = (255, 255, 255)) -> Image.Image:
    """`shown`, with what is transparent laid on `background`: mode RGB."""
    from PIL import Image

    image = shown(picture)
    if image.mode == "RGB":
        return image
    base = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(base, image).convert("RGB")


def rgb_frames(picture: Image.Image, background: Colour = (255, 255, 255)) -> Iterator[Image.Image]:
    """`to_rgb` of each frame of an animated picture, of the one frame of any other."""
    from PIL import ImageSequence

    for frame in ImageSequence.Iterator(picture):
        yield to_rgb(frame, background)


def _orientation(picture: Image.Image) -> int:
    """EXIF's 1 to 8; 1 if there is none, or if the EXIF block is damaged, which says nothing about the pixels."""
    try:
        with warnings.catch_warnings(action="ignore"):
            value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's parser raises anything
        return 1
    return value if value in range(1, 9) else 1


def _upright(picture: Image.Image) -> Image.Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _to_8_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey (H, W) of Pillow's modes I;16, I and F as uint8."""
    import numpy as np

    lowest, highest = values.min(), values.max()
    ranges = _RANGES[mode[:4]]
    white = next((limit for limit in ranges if lowest >= 0 and highest <= limit), None)
    if white is None:  # also if a value is not a number
        names = " or ".join(f"{limit:,.0f}" for limit in ranges)
        raise ValueError(
            f"it holds grey from {lowest:g} to {highest:g}, not from 0 to {names}; save it with 8 or 16 bits"
        )
    return np.rint(values * (255.0 / white)).astype(np.uint8)
