"""Latent frames that stand for known and made frames at once, brought to show the known ones.

A last picture is one of the four frames of its latent frame. Encoded with repeats of itself in place of the other
three, it would stop the motion early; among the frames that were made, it decodes to something else. So once a video is
denoised, its last chunk is decoded, the picture put in, and the latent frame corrected by the change that this makes
to the encoder's output (Van Cittert's iteration on the VAE). This also undoes part of the VAE's own loss.

Shapes: N videos, frames (N, 3, T, H, W), mask (N, 1, T, H, W), latents (N, C, t, h, w) in the denoiser's scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ea_runtime.generation.known_frames import latent_spans
from ea_runtime.machine.computing import for_network
from ea_runtime.models.geometry import Geometry

#: corrections; measured on 60 pairs of pictures, further ones gain less than 0.5 dB
ROUNDS = 3


@torch.no_grad()
def settle(vae: Any, geometry: Geometry, latents: Tensor, video: Tensor, mask: Tensor) -> Tensor:
    """Latents whose half-known latent frames decode to the known frames; all others keep every bit.

    vae: encodes and decodes (`encode_video`, `iter_decode`). video: frames in 0..1. mask: above half: to be made; a
    frame is known where all of it is. Float32, on the latents' device.
    """
    found = latents.clone()
    pieces = geometry.pieces(video.shape[2])
    spans = latent_spans(video.shape[2], geometry)
    for row in range(len(latents)):  # one by one: a video of a batch gets the bits that it gets alone
        is_known = [not bool(frame.any()) for frame in (mask[row, 0] > 0.5)]
        for piece in pieces:
            own = [k for k, span in enumerate(spans) if piece.start <= span.start < piece.stop]
            half = [k for k in own if 0 < sum(is_known[i] for i in spans[k]) < len(spans[k])]
            if half:
                part, given = slice(own[0], own[-1] + 1), video[row : row + 1, :, piece] * 2 - 1
                settled = _settle_piece(
                    vae, geometry.scale, found[row : row + 1, :, part], given, is_known[piece], half, own[0]
                )
                found[row : row + 1, :, half] = settled.to(found)
    return found


def _settle_piece(
    vae: Any, scale: float, latents: Tensor, given: Tensor, is_known: list[bool], half: list[int], first: int
) -> Tensor:
    """The latent frames `half` of a piece (1, C, t, h, w) whose first latent frame is number `first`."""
    given = for_network(vae, given)
    shown = torch.tensor(is_known, device=given.device)[None, None, :, None, None]
    places = [k - first for k in half]
    now = latents.clone()

    def encoded(frames: Tensor) -> Tensor:
        return (vae.encode_video(frames) * scale)[:, :, places].to(now)

    for done in range(ROUNDS):
        frames = torch.cat(list(vae.iter_decode(for_network(vae, now / scale), smooth=False)), dim=2)
        wanted = encoded(torch.where(shown, given, frames))
        # at first from the encoder alone: what was there may be a still picture
        now[:, :, places] = wanted if done == 0 else now[:, :, places] + wanted - encoded(frames)
    return now[:, :, places]
