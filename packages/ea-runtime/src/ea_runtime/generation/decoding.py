"""Latents of a run decoded to frames, as a stream: in one piece, around a loop's seam, or blended where windows meet.

Shapes: latents (1, C, t, h, w) in the denoiser's scale, frames (H, W, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.generation.latents import iter_frames
from ea_runtime.generation.out_of_memory import explained
from ea_runtime.generation.result import OnStep, VideoOutput
from ea_runtime.generation.windows import Windows, windows_of
from ea_runtime.machine.computing import for_network
from ea_runtime.machine.formats import PartFormats
from ea_runtime.models.geometry import Geometry

#: latents, num_frames=, start= -> frames from `start` on
Decode = Callable[..., Iterator[np.ndarray]]


class Decoder(Protocol):
    """The part of a pipeline that decodes."""

    vae: Any
    geometry: Geometry

    def iter_frames(
        self,
        latents: Tensor,
        *,
        seed: int = 0,
        smooth: bool = True,
        num_frames: int | None = None,
        start: int = 0,
        is_tiled: bool = False,
    ) -> Iterator[np.ndarray]:
        """Frames of one video."""
        ...


def decoded(
    vae: Any,
    geometry: Geometry,
    formats: PartFormats,
    latents: Tensor,
    *,
    seed: int,
    smooth: bool,
    num_frames: int | None,
    start: int,
    is_tiled: bool,
) -> Iterator[np.ndarray]:
    """See `VideoPipeline.iter_frames`."""
    latents = latents.unsqueeze(0) if latents.ndim == 4 else latents
    if latents.ndim != 5 or latents.shape[0] != 1:
        raise UserError(f"`latents` must be of one video (1, C, t, h, w), got shape {tuple(latents.shape)}")
    count = geometry.num_frames(latents.shape[2]) if num_frames is None else num_frames
    height, width = (side * geometry.spatial_ratio for side in latents.shape[3:])
    scaled = for_network(vae, latents.float() / geometry.scale)
    frames = iter_frames(
        vae, scaled, smooth=smooth, seed=seed, num_frames=count, start=start, is_tiled=is_tiled
    )
    while True:
        with explained("decoding", geometry, count, height, width), formats.watch(vae):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def frames_of(
    pipe: Decoder, result: VideoOutput, number: int = 0, start: int = 0, is_tiled: bool = False
) -> Iterator[np.ndarray]:
    """The frames of video `number` of a result from frame `start` on, in constant memory."""
    settings = result.settings
    windows = windows_of(settings, pipe.geometry)
    latents = result.latents[number : number + 1]
    decode = partial(
        pipe.iter_frames, seed=result.decode_seeds[number], smooth=settings["smooth"], is_tiled=is_tiled
    )
    if windows.is_pixels:
        return _blended(decode, windows, latents, start)
    if windows.is_loop:
        return _around(decode, pipe.geometry, windows.num_frames, latents, start)
    return decode(latents, num_frames=windows.num_frames, start=start)


def decode_all(pipe: Decoder, result: VideoOutput, step: OnStep) -> np.ndarray:
    """All frames of all videos, (B, T, H, W, 3). step: progress."""
    settings = result.settings
    count, batch = settings["num_frames"], result.latents.shape[0]
    frames = np.empty((batch, count, settings["height"], settings["width"], 3), np.uint8)
    for i in range(batch):
        step("decoding", i * count, batch * count)
        for number, frame in enumerate(frames_of(pipe, result, i)):
            frames[i, number] = frame
            step("decoding", i * count + number + 1, batch * count)
    return frames


def _around(
    decode: Decode, geometry: Geometry, count: int, latents: Tensor, start: int
) -> Iterator[np.ndarray]:
    """A loop's frames: decoded between its last chunk and its first one, so that its seam is smoothed as all others."""
    chunk, frames = geometry.chunk_latents, geometry.chunk_frames
    longer = torch.cat([latents[:, :, -chunk:], latents, latents[:, :, :chunk]], dim=2)
    with closing(decode(longer, num_frames=count + 2 * frames, start=frames + start)) as stream:  # pyright: ignore[reportArgumentType]
        yield from islice(stream, count - start)


def _blended(decode: Decode, windows: Windows, latents: Tensor, start: int) -> Iterator[np.ndarray]:
    """Frames of windows that are decoded one by one; where two meet, the later one's share grows linearly."""
    every = windows.all
    # the one that `start` is in, and those that its blended frames depend on
    first = max(0, max(k for k, one in enumerate(every) if one.first <= start) - 2)
    offset = sum(one.num_latents for one in every[:first])
    waiting: dict[int, np.ndarray] = {}
    for window, following in zip(every[first:], [*every[first + 1 :], None], strict=True):
        own = latents[:, :, offset : offset + window.num_latents]
        offset += window.num_latents
        stop = window.last if following is None else following.first
        before, waiting = waiting, {}
        for number, frame in enumerate(decode(own, num_frames=window.num_frames), window.first):
            if number in before:
                share = (number - window.first) / window.frames_before
                mixed = before.pop(number) * (1 - share) + frame * share
                frame = mixed.round().astype(np.uint8)
            if number >= stop:
                waiting[number] = frame
            elif number >= start:
                yield frame
