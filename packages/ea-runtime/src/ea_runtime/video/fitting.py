"""Pictures and frames brought to the size of a generation: cropped, padded or stretched."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from ea_runtime.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

Fit = Literal["crop", "pad", "stretch"]
FITS: tuple[Fit, ...] = ("crop", "pad", "stretch")


def check_fit(fit: str) -> Fit:
    """Raises UserError for another word than crop, pad or stretch."""
    if fit not in FITS:
        raise UserError(f"`fit` must be one of {', '.join(FITS)}, got {fit!r}")
    return fit


def fitted(
    picture: Image.Image,
    width: int,
    height: int,
    fit: Fit = "crop",
    background: tuple[int, int, int] = (0, 0, 0),
) -> Image.Image:
    """A picture of mode RGB or L at `width` x `height` pixels.

    fit: "crop" covers the size and cuts off the rest around the middle, "pad" shows the whole on `background`,
    "stretch" changes the ratio of the sides. A picture that has the size stays as it is.
    """
    from PIL import Image, ImageOps

    size = (width, height)
    if picture.size == size:
        return picture
    method = Image.Resampling.LANCZOS
    if fit == "stretch":
        return picture.resize(size, method)
    if fit == "crop":
        return ImageOps.fit(picture, size, method)
    colour = background if picture.mode == "RGB" else background[0]
    return ImageOps.pad(picture, size, method, color=colour)


def lost_share(size: tuple[int, int], width: int, height: int) -> float:
    """The share of a picture of `size` (width, height) that "crop" to `width` x `height` cuts off, 0 to 1."""
    ratio, wanted = size[0] / size[1], width / height
    return 1 - min(ratio, wanted) / max(ratio, wanted)


def size_like(size: tuple[int, int], pixels: int, multiple: int) -> tuple[int, int]:
    """Width and height, multiples of `multiple`, with about `pixels` in all and nearest to the ratio of `size`."""
    ratio = size[0] / size[1]
    best = (math.inf, 0, 0)
    target = math.sqrt(pixels * ratio)
    for columns in {max(1, math.floor(target / multiple)), max(1, math.ceil(target / multiple))}:
        for rows in {
            max(1, math.floor(columns / ratio)),
            max(1, math.ceil(columns / ratio)),
        }:
            area = columns * rows * multiple**2
            off = abs(math.log(columns / rows / ratio)) + 0.5 * abs(math.log(area / pixels))
            best = min(best, (off, columns * multiple, rows * multiple))
    return best[1], best[2]
