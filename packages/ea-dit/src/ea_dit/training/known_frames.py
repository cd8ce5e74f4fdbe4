"""Masks of known frames for training, and the further input channels that they give (V3's inpainting models).

A mask says which frames are to be made, and in which box of them; the rest of a clip is known. V3's five kinds:
    all     nothing is known: text to video
    start   the first frames are known
    ends    the first and the last frames are known
    box     one box is to be made, in all frames
    part    one box is to be made, in a stretch of frames
The channels are the VAE's encoding of the mask (white: to be made) and of the clip with black in place of what is to be
made. Both are means of the posterior. Differs from EasyAnimate, which draws from it: sampling sees means too.

Shape legend: B samples, T frames, C latent channels, t h w latents, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ea_runtime.training.latents.coder import Coder, means
from ea_runtime.training.recipe import Batch

Kind = Literal["all", "start", "ends", "box", "part"]
#: what a picture can have
PICTURE_KINDS: tuple[Kind, ...] = ("all", "box")
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Mask:
    """Frames first..stop - 1 are to be made, within `box` (top, left, bottom, right in pixels; None: all of them)."""

    first: int
    stop: int
    box: Box | None = None

    def within(self, start: int, length: int) -> Mask:
        """The mask of frames start..start + length - 1, counted from there."""
        first, stop = (min(max(frame - start, 0), length) for frame in (self.first, self.stop))
        return Mask(first, stop, self.box) if first < stop else Mask(0, 0)

    def is_mixed(self, length: int) -> bool:
        """True if some of `length` frames' pixels are known and some are to be made."""
        return self.first < self.stop and (self.box is not None or (self.first, self.stop) != (0, length))

    def pixels(self, length: int, height: int, width: int) -> Tensor:
        """bool (T, H, W), True where it is to be made."""
        top, left, bottom, right = self.box or (0, 0, height, width)
        made = torch.zeros(length, height, width, dtype=torch.bool)
        made[self.first : self.stop, top:bottom, left:right] = True
        return made


@dataclass(frozen=True, slots=True)
class MaskDraw:
    """A way to draw masks. weights: of the kinds. lengths: numbers of frames that may be known at an end."""

    weights: Mapping[Kind, float]
    lengths: Sequence[int]

    def __call__(
        self, seed: int, index: int, num_frames: int, height: int, width: int, given: str = ""
    ) -> Mask:
        """The mask of a sample: a function of its arguments.

        given: "start" or "ends": such frames are always known (`Item.given`).
        """
        rng = np.random.default_rng(np.random.SeedSequence([seed, index, 0x4D]))
        kind = self._kind(rng, num_frames, given)
        if kind == "all":
            return Mask(0, num_frames)
        if kind in ("start", "ends"):
            ends = 1 + (kind == "ends")
            fitting = [length for length in self.lengths if ends * length < num_frames] or [1]
            length = fitting[int(rng.integers(len(fitting)))]
            return Mask(length, num_frames - length if kind == "ends" else num_frames)
        top, bottom = _span(rng, height)
        left, right = _span(rng, width)
        first, stop = 0, num_frames
        if kind == "part":
            half = num_frames // 2
            first, stop = int(rng.integers(0, half)), int(rng.integers(half, num_frames))
        return Mask(first, stop, (top, left, bottom, right))

    def _kind(self, rng: np.random.Generator, num_frames: int, given: str) -> Kind:
        if given and num_frames > 2:
            return "ends" if given == "ends" else "start"
        usual: dict[Kind, float] = dict(self.weights)
        if num_frames < 3:
            usual = {kind: self.weights.get(kind, 0.0) for kind in PICTURE_KINDS}
            if not sum(usual.values()):
                return "all"
        names, weights = list(usual), np.array(list(usual.values()), dtype=np.float64)
        return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _span(rng: np.random.Generator, side: int) -> tuple[int, int]:
    """Start and stop of a box along a side: a quarter to three quarters of it, around any pixel, cut at the edges."""
    centre = int(rng.integers(0, side))
    length = int(rng.integers(side // 4, max(side // 4 * 3, side // 4 + 1)))
    return max(centre - length // 2, 0), min(max(centre + length // 2, 1), side)


class KnownChannels:
    """The further channels of a batch.

    coder: encodes, chunk by chunk, as it encodes the set. What is known or to be made as a whole chunk is not encoded
    again: it has the set's own latents, or one encoding for all.
    scale: what latents are multiplied by.
    """

    def __init__(self, coder: Coder, scale: float, chunk: int) -> None:
        self.coder, self.scale, self.chunk = coder, scale, chunk
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def needs_frames(self, mask: Mask, num_frames: int) -> bool:
        """True if a sample's channels need its frames, not its latents alone."""
        length = self._length(num_frames)
        return any(mask.within(start, length).is_mixed(length) for start in range(0, num_frames, length))

    def __call__(self, batch: Batch, moments: Tensor, num_frames: int, height: int, width: int) -> Tensor:
        """float32 (B, 2C, t, h, w), scaled, on the coder's device.

        batch: "masks", a list of B masks, and "frames" (B, T, H, W, 3) uint8, of the samples that need them. moments:
        (B, 2C, t, h, w) of the clips.
        """
        length = self._length(num_frames)
        count = num_frames // length
        known = rearrange(means(moments), "b c (k t) h w -> b k c t h w", k=count)
        masks: list[list[Mask]] = [
            [mask.within(k * length, length) for k in range(count)] for mask in batch.tensors["masks"]
        ]
        mixed = [(b, k) for b, row in enumerate(masks) for k, mask in enumerate(row) if mask.is_mixed(length)]
        encoded = dict(zip(mixed, self._mixed(batch, masks, mixed, length), strict=True))
        size = (length, height, width)
        rows = []
        for b, row in enumerate(masks):
            parts = [
                torch.cat(
                    [self._of_mask(mask, *size), self._shown(mask, encoded.get((b, k)), known[b, k], size)]
                )
                for k, mask in enumerate(row)
            ]
            rows.append(torch.cat(parts, dim=1))
        return torch.stack(rows) * self.scale

    def _length(self, num_frames: int) -> int:
        return 1 if num_frames == 1 else self.chunk

    def _mixed(
        self, batch: Batch, masks: list[list[Mask]], mixed: list[tuple[int, int]], length: int
    ) -> list[Tensor]:
        """(C, t, h, w) of the masked chunks, encoded together."""
        if not mixed:
            return []
        frames = batch.tensors["frames"]
        chunks = torch.stack([frames[b, k * length : (k + 1) * length] for b, k in mixed])
        made = torch.stack([masks[b][k].pixels(length, *chunks.shape[2:4]) for b, k in mixed])
        return list(means(self.coder.moments(chunks.masked_fill(made[..., None], 0))))

    def _shown(self, mask: Mask, encoded: Tensor | None, known: Tensor, size: tuple[int, int, int]) -> Tensor:
        if encoded is not None:
            return encoded
        return known if mask.first == mask.stop else self._constant(0, *size)

    def _of_mask(self, mask: Mask, length: int, height: int, width: int) -> Tensor:
        """(C, t, h, w) of the mask itself; without a box one of few, so kept."""
        if not mask.is_mixed(length):
            return self._constant(255 if mask.first < mask.stop else 0, length, height, width)
        white = mask.pixels(length, height, width).to(torch.uint8) * 255
        frames = white[None, ..., None].expand(-1, -1, -1, -1, 3)
        if mask.box is not None:
            return means(self.coder.moments(frames))[0]
        return self._keep((mask, length, height, width), frames)

    def _constant(self, level: int, length: int, height: int, width: int) -> Tensor:
        frames = torch.full((1, length, height, width, 3), level, dtype=torch.uint8)
        return self._keep((level, length, height, width), frames)

    def _keep(self, key: tuple[object, ...], frames: Tensor) -> Tensor:
        if key not in self._kept:
            self._kept[key] = means(self.coder.moments(frames))[0]
        return self._kept[key]
