"""Pictures, videos and masks that a generation starts from, read and brought to its size.

Shapes: frames (B, 3, T, H, W) in 0..1, mask (B, 1, T, H, W), 1: to be made, 0: known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.generation.inputs import CLIP_APPLY_RATIO, has_known_frames, opened
from ea_runtime.generation.known_frames import KnownFrames, encode_known_frames
from ea_runtime.models.clip_config import WIDTH
from ea_runtime.models.geometry import takes_known_frames, takes_picture
from ea_runtime.video.fitting import Fit, check_fit, fitted, lost_share
from ea_runtime.video.pictures import to_rgb
from ea_runtime.video.reader import read_frames

if TYPE_CHECKING:
    from ea_runtime.generation.requests import Request
    from ea_runtime.models.geometry import Geometry
    from ea_runtime.models.image_encoder import ImageEncoder

NO_IMAGE_ENCODER = (
    "the model has no image_encoder/ (CLIP), so the video is made without the text tokens of its first picture; add "
    "one, or give `clip_image_embeds`"
)
#: a crop that loses a larger share of a picture is mentioned
_LOST = 0.02


@dataclass(frozen=True, slots=True)
class KnownVideo:
    """video: (B, 3, T, H, W) in 0..1. mask: (B, 1, T, H, W), 1: to be made. notes: lines for the user."""

    video: Tensor
    mask: Tensor
    notes: tuple[str, ...] = ()


def encode_inputs(
    request: Request,
    vae: Any,
    geometry: Geometry,
    config: Any,
    batch: int,
    image_encoder: ImageEncoder | None = None,
    keep_known: bool = False,
) -> tuple[KnownFrames | None, tuple[str, ...]]:
    """The known frames of a checked request of `batch` videos, encoded, and notes for the user.

    config: the denoiser's. image_encoder: for one of V3. keep_known: the model's default. None if nothing is known and
    the denoiser does not ask for it.
    """
    if request.clip_image_embeds is not None and not takes_picture(config):
        raise UserError(
            "`clip_image_embeds` is for models that take CLIP's picture, as V3's do; leave it out"
        )
    is_known = has_known_frames(request)
    if not is_known and not takes_known_frames(config):
        return None, ()
    if vae is None:
        raise UserError(
            "a generation from pictures or a video needs a VAE, and this pipeline has none; give `vae=`"
        )
    size = (request.num_frames, request.height, request.width)
    found = read_known_frames(request, batch) if is_known else nothing_known(batch, *size)
    clip, of_clip = _picture_embeds(request, found, config, image_encoder)
    ratio = request.clip_apply_ratio
    known = encode_known_frames(
        vae,
        geometry,
        config,
        found.video,
        found.mask,
        posterior=request.posterior or "mode",
        generators=[torch.Generator().manual_seed(number) for number in range(batch)],
        clip=clip,
        clip_apply_ratio=CLIP_APPLY_RATIO if ratio is None else ratio,
        keep_known=keep_known and is_known,
    )
    return known, (*found.notes, *of_clip)


def _picture_embeds(
    request: Request, found: KnownVideo, config: Any, image_encoder: ImageEncoder | None
) -> tuple[Tensor | None, tuple[str, ...]]:
    """CLIP's embeddings (B, 768) of the videos' first frames, zeros for those that are not known; and notes.

    What the request gives counts. None if no first frame is known, or nothing can encode it.
    Differs from EasyAnimate's script: CLIP sees the first frame as the video shows it, as in its training, where the
    script gives it the picture before it is brought to the video's size.
    """
    batch = len(found.video)
    given = request.clip_image_embeds
    if given is not None:
        if given.ndim != 2 or given.shape[0] not in (1, batch) or given.shape[1] != WIDTH:
            raise UserError(
                f"`clip_image_embeds` must have shape (1 or {batch}, {WIDTH}), got {tuple(given.shape)}"
            )
        return given.expand(batch, -1), ()
    known = [row for row in range(batch) if not bool((found.mask[row, :, 0] > 0.5).any())]
    if not known or not takes_picture(config) or request.clip_apply_ratio == 0:
        return None, ()
    if image_encoder is None:
        return None, (NO_IMAGE_ENCODER,)
    levels = {row: (found.video[row, :, 0] * 255).round().to(torch.uint8).cpu() for row in known}
    pictures = {
        level.numpy().tobytes(): Image.fromarray(level.permute(1, 2, 0).numpy()) for level in levels.values()
    }
    encoded = dict(zip(pictures, image_encoder.encode(list(pictures.values())), strict=True))
    embeds = torch.zeros(batch, WIDTH)
    for row, level in levels.items():
        embeds[row] = encoded[level.numpy().tobytes()]
    return embeds, ()


def read_known_frames(request: Request, batch: int) -> KnownVideo:
    """The known frames of a checked request. Raises UserError for what cannot be read or has another size."""
    count, height, width = request.num_frames, request.height, request.width
    fit, notes = check_fit(request.fit or "crop"), list[str]()
    reader = _Reader(width, height, fit, notes)
    if request.video is None and request.mask is None:
        video, mask = _between(request, reader, count)
    else:
        name = "image" if request.video is None else "video"
        video = reader.video(name, getattr(request, name), count)
        mask = torch.ones(1, 1, count, height, width)
        if request.mask is not None:
            mask = reader.mask(request.mask, count)
    return KnownVideo(_rows("video", video, batch), _rows("mask", mask, batch), tuple(dict.fromkeys(notes)))


def nothing_known(batch: int, count: int, height: int, width: int) -> KnownVideo:
    """For a denoiser that takes known frames, and a request without any: all is made."""
    size = (count, height, width)
    return KnownVideo(  # one number each, whatever the size
        torch.zeros(1, 1, 1, 1, 1).expand(batch, 3, *size), torch.ones(1, 1, 1, 1, 1).expand(batch, 1, *size)
    )


def _between(request: Request, reader: _Reader, count: int) -> tuple[Tensor, Tensor]:
    """A first picture, a last one, or both; frames between them show the nearer one until they are made."""
    size = (reader.height, reader.width)
    mask = torch.ones(1, 1, count, *size)
    first = None if request.image is None else reader.picture("image", request.image)
    last = None if request.image_end is None else reader.picture("image_end", request.image_end)
    half = count if last is None else 0 if first is None else (count + 1) // 2
    frames = []
    if first is not None and half:
        frames.append(first[:, :, None].expand(-1, -1, half, -1, -1))
        mask[:, :, 0] = 0
    if last is not None and half < count:
        frames.append(last[:, :, None].expand(-1, -1, count - half, -1, -1))
        mask[:, :, -1] = 0
    return torch.cat(frames, dim=2), mask


def _rows(name: str, value: Tensor, batch: int) -> Tensor:
    if value.shape[0] not in (1, batch):
        raise UserError(
            f"`{name}` must be of 1 video or of {batch}, one for each prompt, got {value.shape[0]}"
        )
    return value.expand(batch, -1, -1, -1, -1)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Inputs of any kind at one size."""

    width: int
    height: int
    fit: Fit
    notes: list[str]

    def picture(self, name: str, value: Any) -> Tensor:
        """(1, 3, H, W) or (B, 3, H, W) in 0..1."""
        if isinstance(value, Tensor):
            tensor = value[None] if value.ndim == 3 else value
            self._check_tensor(name, tensor, (3, self.height, self.width))
            return tensor.float()
        return _to_tensor([self._fitted(name, _picture(name, value))])[:, :, 0]

    def video(self, name: str, value: Any, count: int) -> Tensor:
        """(1 or B, 3, T, H, W) in 0..1."""
        if isinstance(value, Tensor):
            tensor = value[:, :, None] if value.ndim == 4 and count == 1 else value
            self._check_tensor(name, tensor, (3, count, self.height, self.width))
            return tensor.float()
        frames = [self._fitted(name, frame) for frame in _frames(name, value, count)]
        if len(frames) < count:
            raise UserError(
                f"`{name}` must have {count} frames or more, got {len(frames)}; ask for fewer with num_frames"
            )
        return _to_tensor(frames)

    def mask(self, value: Any, count: int) -> Tensor:
        """(1 or B, 1, T, H, W), 0 or 1; a picture is the mask of every frame."""
        if isinstance(value, Tensor):
            self._check_tensor("mask", value, (1, count, self.height, self.width))
            levels = value.float()
            return (levels > levels.max().clamp(min=1.0) / 2).float()
        frames = [self._fitted("mask", frame.convert("L")) for frame in _frames("mask", value, count)]
        if len(frames) not in (1, count):
            raise UserError(
                f"`mask` must be a picture or a video of {count} frames, got {len(frames)}; cut it to that length"
            )
        frames = frames * (count // len(frames))
        return (_to_tensor(frames) > 0.5).float()

    def _fitted(self, name: str, picture: Image.Image) -> Image.Image:
        lost = lost_share(picture.size, self.width, self.height) if self.fit == "crop" else 0.0
        if lost > _LOST:
            self.notes.append(
                f"`{name}` of {picture.width}x{picture.height} is cropped to the ratio of {self.width}x{self.height}: "
                f"{lost:.0%} of it is cut off; fit 'pad' shows all of it"
            )
        return fitted(picture, self.width, self.height, self.fit)

    def _check_tensor(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        if value.ndim != len(shape) + 1 or tuple(value.shape[1:]) != shape:
            raise UserError(
                f"`{name}` must have shape (batch, {', '.join(map(str, shape))}), got {tuple(value.shape)}"
            )


def _picture(name: str, value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return to_rgb(value)
    if isinstance(value, np.ndarray):
        return _of_array(name, value)
    if not isinstance(value, str | os.PathLike):
        raise UserError(
            f"`{name}` must be a picture: a file, a PIL picture, an array (H, W, 3) or a tensor, got "
            f"{type(value).__name__}"
        )
    with opened(name, value) as picture:
        return to_rgb(picture)


def _frames(name: str, value: Any, count: int) -> Iterator[Image.Image]:
    """The first `count` frames as pictures of mode RGB."""
    if isinstance(value, Image.Image):
        yield to_rgb(value)
    elif isinstance(value, np.ndarray):
        for frame in (value if value.ndim == 4 else value[None])[:count]:
            yield _of_array(name, frame)
    elif isinstance(value, str | os.PathLike):
        for number, frame in enumerate(read_frames(value)):
            if number == count:
                return
            yield Image.fromarray(frame)
    elif isinstance(value, Sequence):
        for frame in value[:count]:
            yield _picture(name, frame)
    else:
        raise UserError(
            f"`{name}` must be a video or picture: a file, an array (T, H, W, 3), a list of pictures or a tensor, got "
            f"{type(value).__name__}"
        )


def _of_array(name: str, value: np.ndarray) -> Image.Image:
    if value.ndim != 3 or value.shape[2] != 3 or value.dtype != np.uint8:
        raise UserError(
            f"`{name}` must be an array (H, W, 3) of uint8, got {value.dtype} of shape {value.shape}"
        )
    return Image.fromarray(value)


def _to_tensor(frames: Sequence[Image.Image]) -> Tensor:
    """(1, channels, T, H, W) in 0..1."""
    stacked = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames]))
    stacked = stacked[..., None] if stacked.ndim == 3 else stacked
    return (stacked.permute(3, 0, 1, 2)[None].float() / 255).contiguous()
