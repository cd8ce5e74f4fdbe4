"""Files that a generation starts from: a first and a last picture, a video, a mask. Checks and hashes; no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ea_runtime.errors import UserError
from ea_runtime.files.hashes import content_hash
from ea_runtime.video.fitting import check_fit, size_like
from ea_runtime.video.pictures import open_picture, picture_size
from ea_runtime.video.reader import read_frames

if TYPE_CHECKING:
    from PIL import Image

    from ea_runtime.generation.requests import Request
    from ea_runtime.models.geometry import Geometry

AnyRequest = TypeVar("AnyRequest", bound="Request")

#: arguments of the pipeline's call that may be files
INPUTS = ("image", "image_end", "video", "mask")
POSTERIORS = ("mode", "sample")
#: larger pictures are refused before they are decoded
MAX_PICTURE_PIXELS = 1 << 27
#: of a video that is changed as a whole
USUAL_STRENGTH = 0.6
#: in that last share of the steps V3's denoiser sees the picture's tokens
CLIP_APPLY_RATIO = 0.5


def has_known_frames(request: Request) -> bool:
    """True if a request starts from pictures or a video."""
    return any(getattr(request, name) is not None for name in INPUTS)


def check_known_frames(request: Request) -> None:
    """Raises UserError for inputs that do not go together or are out of range; nothing is read."""
    if request.video is not None and (request.image is not None or request.image_end is not None):
        raise UserError("give either `video`, or `image` and `image_end`, not both")
    if request.mask is not None and request.video is None and request.image is None:
        raise UserError("`mask` is the part of `video` (or of `image`) that is made; give one of these too")
    if request.mask is not None and request.image_end is not None:
        raise UserError("`mask` is for one `video` or `image`; leave `image_end` out")
    for name in ("strength", "fit"):
        if getattr(request, name) is not None and not has_known_frames(request):
            raise UserError(
                f"`{name}` is for a generation from `image` or `video`; give one, or leave it out"
            )
    strength_of(request)
    check_fit(request.fit or "crop")
    if request.posterior not in (None, *POSTERIORS):
        raise UserError(f"`posterior` must be one of {', '.join(POSTERIORS)}, got {request.posterior!r}")
    ratio = request.clip_apply_ratio
    if ratio is not None and not _within(ratio, 0, 1):
        raise UserError(f"`clip_apply_ratio` must be from 0 to 1, got {ratio!r}; {CLIP_APPLY_RATIO} is usual")


def strength_of(request: Request) -> float:
    """The share of the steps that are done: what is asked for, 0.6 for a video without a mask, otherwise 1.

    Raises UserError.
    """
    value = request.strength
    if value is None:
        return USUAL_STRENGTH if request.video is not None and request.mask is None else 1.0
    if not _within(value, 0, 1) or float(value) == 0:
        raise UserError(
            f"`strength` must be above 0 and at most 1, got {value!r}; 1 makes everything new, 0.6 keeps the layout"
        )
    return float(value)


def _within(value: Any, low: float, high: float) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
    )


@contextmanager
def opened(name: str, path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """A picture file, not yet decoded. Raises UserError for one that cannot be read, is animated or very large."""
    from PIL import Image

    place = Path(path)
    shown = repr(str(place))
    if not place.is_file():
        raise UserError(f"`{name}` must be a picture file, got {shown}, which does not exist or is no file")
    try:
        with open_picture(place) as picture:
            if picture.width * picture.height > MAX_PICTURE_PIXELS:
                raise UserError(
                    f"`{name}` {shown} has {picture.width}x{picture.height} pixels, at most {MAX_PICTURE_PIXELS:,} are "
                    "read; make it smaller"
                )
            if getattr(picture, "n_frames", 1) > 1:
                raise UserError(
                    f"`{name}` {shown} has several pictures; give one of them, or the file as `video`"
                )
            yield picture
    except UserError:
        raise
    # Pillow's decoders raise what they like on damaged files
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise UserError(f"`{name}` {shown} cannot be read as a picture: {error}") from error


def settle_inputs(request: AnyRequest, recorded: Mapping[str, Any] | None, given: Request) -> AnyRequest:
    """A request with its files by whole paths, opened once. given: what the user asked for, without the record.

    Raises UserError for a file that cannot be read, or that is not the recorded one.
    """
    hashes = {} if recorded is None else recorded.get("inputs", {})
    changes: dict[str, str] = {}
    for name in INPUTS:
        value = getattr(request, name)
        if not isinstance(value, str):
            continue
        path = Path(value).expanduser().absolute()
        option = f"--{name.replace('_', '-')}"
        if getattr(given, name) is None and (not path.exists() or content_hash(path) != hashes.get(name)):
            raise UserError(
                f"`--from` was made with {path.name!r} as its {name}, which is not at {str(path)!r} as it was; give it "
                f"with {option}"
            )
        if name in ("image", "image_end"):
            with opened(name, path) as picture:
                picture.load()
        else:
            next(iter(read_frames(path)), None)
        changes[name] = str(path)
    return replace(request, **changes)


def without_others(before: AnyRequest, given: Request) -> AnyRequest:
    """A recorded request without the inputs that those which the user gives stand for."""
    if given.video is not None:
        return replace(before, image=None, image_end=None, mask=None, strength=None)
    if given.image is not None or given.image_end is not None:
        return replace(before, video=None, mask=None, strength=None)
    return before


def input_hashes(settings: Mapping[str, Any]) -> dict[str, str]:
    """The hash of each file that a generation starts from."""
    return {
        name: content_hash(Path(settings[name])) for name in INPUTS if isinstance(settings.get(name), str)
    }


def size_of_inputs(request: Request, geometry: Geometry, pixels: int) -> tuple[int, int]:
    """Width and height like those of the picture or video, with about `pixels`. Raises UserError without one."""
    for name in ("image", "image_end"):
        if isinstance(getattr(request, name), str):
            with opened(name, getattr(request, name)) as picture:
                return size_like(picture_size(picture), pixels, geometry.size_multiple)
    if isinstance(request.video, str):
        frame = next(iter(read_frames(request.video)))
        return size_like((frame.shape[1], frame.shape[0]), pixels, geometry.size_multiple)
    raise UserError(
        "`size` auto follows a picture or video; give --image or --video, or a size such as 672x384"
    )
