"""Frames that are known before denoising: a first or last picture, a video to start from, a region to keep.

Two ways, by the model. V2's denoiser takes latents alone: after each step what is known is put back, noised to that
step's level. V3's takes the known frames as further channels at every step (the encoded mask, then the encoded masked
video), and CLIP's embedding of the picture as text tokens.

Shapes: B videos, frames (B, 3, T, H, W) in 0..1, mask (B, 1, T, H, W), latents (B, C, t, h, w) in the denoiser's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_runtime.generation.inputs import CLIP_APPLY_RATIO
from ea_runtime.machine.computing import for_network
from ea_runtime.models.geometry import Geometry, takes_known_frames


@dataclass(frozen=True, slots=True)
class KnownFrames:
    """The known frames of B videos, encoded.

    latents: (B, C, t, h, w) of the video. to_make: (B, 1, t, h, w), 1 where latents are made, 0 where they are known.
    inputs: (B, 2C, t, h, w), further channels for the denoiser, or None for a model that has none. clip: (B, 768),
    CLIP's embedding of the picture, or None; it counts from step 1 - clip_apply_ratio on. A row of zeros stands for no
    picture. keeps: known latents are put back after each step.
    """

    latents: Tensor
    to_make: Tensor
    inputs: Tensor | None = None
    clip: Tensor | None = None
    clip_apply_ratio: float = CLIP_APPLY_RATIO
    keeps: bool = True

    def rows(self, start: int, stop: int) -> KnownFrames:
        """Videos start..stop."""
        part = slice(start, stop)
        return replace(
            self,
            latents=self.latents[part],
            to_make=self.to_make[part],
            inputs=None if self.inputs is None else self.inputs[part],
            clip=None if self.clip is None else self.clip[part],
        )

    def to(self, device: torch.device) -> KnownFrames:
        """The same on a device."""
        moved = {name: getattr(self, name) for name in ("latents", "to_make", "inputs", "clip")}
        return replace(self, **{name: None if v is None else v.to(device) for name, v in moved.items()})

    def is_clip_on(self, step: int, count: int) -> bool:
        """True if CLIP's tokens count at step 0..count - 1."""
        return self.clip is not None and step / count >= 1 - self.clip_apply_ratio

    def put_back(self, x: Tensor, noise: Tensor, scheduler: Any, step: int) -> Tensor:
        """x (B, C, t, h, w) after a step, with the known latents in place, at the noise of the next step.

        noise: the unit noise that the run started from. step: 0..count - 1, the one that gave x.
        """
        if not self.keeps:
            return x
        known = self.latents
        if step + 1 < len(scheduler.timesteps):
            known = noised(scheduler, known, noise, step + 1)
        return torch.lerp(known, x, self.to_make)


def noised(scheduler: Any, latents: Tensor, noise: Tensor, step: int) -> Tensor:
    """Latents with the noise that `scheduler` expects before a step."""
    return scheduler.add_noise(latents, noise, scheduler.timesteps[step : step + 1].to(latents.device))


def encode_known_frames(
    vae: Any,
    geometry: Geometry,
    denoiser_config: Any,
    video: Tensor,
    mask: Tensor,
    *,
    posterior: str = "sample",
    generators: Sequence[torch.Generator] | None = None,
    clip: Tensor | None = None,
    clip_apply_ratio: float = CLIP_APPLY_RATIO,
    keep_known: bool = False,
) -> KnownFrames:
    """Encode what is known of a video.

    Args:
        vae: encodes (`encode_video`). denoiser_config: says which of the two ways its model takes.
        video: (B, 3, T, H, W) in 0..1. mask: (B, 1, T, H, W), above half: to be made.
        posterior: "sample" draws the latents of the video from the VAE's posterior, "mode" takes its mean.
        generators: for that draw, one for each video.
        clip: (B, 768), for models that take it.
        keep_known: known latents are put back, also for a model that takes them as channels.
    """
    draw = list(generators) if posterior == "sample" and generators is not None else None
    batch, pieces = len(video), geometry.pieces(video.shape[2])
    mask = mask.expand(batch, -1, -1, -1, -1)
    encoder = _PieceEncoder(vae)

    def to_make(*part: slice) -> Tensor:
        return (mask[part] > 0.5).to(video)

    def encode(frames: Callable[[slice, slice, slice], Tensor]) -> Tensor:
        # row by row: a video of a batch gets the bits that it gets alone
        rows = [slice(row, row + 1) for row in range(batch)]
        found = [encoder(frames(row, slice(None), piece) for piece in pieces) for row in rows]
        return torch.cat(found) * geometry.scale

    with torch.no_grad():
        if draw is None:
            latents = encode(lambda *part: video[part] * 2 - 1)
        else:  # the noise of a whole video is drawn at once
            rows = zip(video.split(1), draw, strict=True)
            latents = torch.cat([encoder.whole(one * 2 - 1, [own]) for one, own in rows]) * geometry.scale
        made = latent_mask(to_make(slice(None)), geometry).to(latents)
        if not takes_known_frames(denoiser_config):
            return KnownFrames(latents, made)
        # what the denoiser sees is not drawn: the same picture is the same input
        masks = encode(lambda *part: to_make(*part).expand_as(video[part]))
        shown = encode(lambda *part: torch.where(to_make(*part).bool(), -1.0, video[part] * 2 - 1))
    inputs = torch.cat([masks, shown], dim=1)
    made = made if keep_known else torch.ones_like(made)
    return KnownFrames(latents, made, inputs, clip, clip_apply_ratio, keep_known)


class _PieceEncoder:
    """The VAE's encoder, piece by piece; pieces of one colour, and those like the one before, are encoded once.

    Most of what stands for unknown frames is one colour: without known frames 2 pieces of MagViT pass the encoder in
    place of 48, with a first picture 5. The pieces are those that the VAE takes by itself, so latents are bit-exact.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        #: frames and colour -> latents
        self.plain: dict[tuple[int, float], Tensor] = {}
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, pieces: Iterable[Tensor]) -> Tensor:
        """Pieces (1, 3, T, H, W) in -1..1 -> latents (1, C, t, h, w) of all, float32."""
        return torch.cat([self._encode(piece) for piece in pieces], dim=2)

    def whole(self, frames: Tensor, generators: list[torch.Generator] | None) -> Tensor:
        """Frames (1, 3, T, H, W) in -1..1 -> latents (1, C, t, h, w), float32."""
        return self.vae.encode_video(for_network(self.vae, frames), generators).float()

    def _encode(self, piece: Tensor) -> Tensor:
        colour = piece[0, 0, 0, 0, 0]
        if bool((piece == colour).all()):
            key = piece.shape[2], float(colour)
            if key not in self.plain:
                self.plain[key] = self.whole(piece, None)
            return self.plain[key]
        if self.last is None or not torch.equal(self.last[0], piece):
            self.last = piece, self.whole(piece, None)
        return self.last[1]


def latent_mask(to_make: Tensor, geometry: Geometry) -> Tensor:
    """Mask (B, 1, T, H, W) of frames -> (B, 1, t, h, w) of latents, between 0 (known) and 1 (to be made).

    The first latent frame follows frame 0, another the last of its frames; in space the mean over a latent's pixels
    blends what is known with what is made.
    """
    last = to_make[:, :, deciding_frames(to_make.shape[2], geometry)]
    ratio = geometry.spatial_ratio
    return F.avg_pool3d(last, (1, ratio, ratio))


def nothing_given(denoiser_config: Any, latents: Tensor) -> dict[str, Tensor]:
    """Arguments of a denoiser's pass that stand for no known frames: for probes and estimates, not for videos."""
    if not takes_known_frames(denoiser_config):
        return {}
    return {"inpaint_latents": torch.cat([torch.zeros_like(latents)] * 2, dim=1)}


def deciding_frames(num_frames: int, geometry: Geometry) -> list[int]:
    """For each latent frame of a video of `num_frames` frames, the frame by which it is known or not."""
    return [0, *(span[-1] for span in latent_spans(num_frames, geometry)[1:])]


def latent_spans(num_frames: int, geometry: Geometry) -> list[range]:
    """For each latent frame of a video of `num_frames` frames, the frames that it stands for."""
    ratio = geometry.temporal_ratio
    if geometry.is_slice:
        alone = num_frames % ratio  # 1 if frame 0 is encoded alone
        spans = [range(start, start + ratio) for start in range(alone, num_frames, ratio)]
        return [range(1), *spans] if alone else spans
    chunk = [range(1), *(range(i + 1, i + 1 + ratio) for i in range(0, geometry.chunk_frames - 1, ratio))]
    starts = range(0, num_frames, geometry.chunk_frames)
    spans = [range(start + span.start, start + span.stop) for start in starts for span in chunk]
    return [span for span in spans if span[-1] < num_frames]


def first_step(scheduler: Any, strength: float) -> int:
    """The step at which a run starts if only `strength` of the noise is put in; set in the scheduler too."""
    count = len(scheduler.timesteps)
    first = count - max(1, min(count, int(count * strength)))
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return first
