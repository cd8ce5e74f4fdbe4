"""V3's inputs of image-to-video: known frames as channels next to the latents, and CLIP's picture as text tokens.

Shapes: latents (B, C, T, H, W), text (B, S, D), CLIP's embedding (B, 768), its tokens (B, 8, D).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import mask_bias
from .config import CLIP_CHANNELS, CLIP_TOKENS, TransformerConfig


class PictureProjection(nn.Module):
    """Linear, tanh-GELU, Linear: CLIP's embedding (B, 768) -> 8 text tokens (B, 8, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(CLIP_CHANNELS, CLIP_TOKENS * width)
        self.linear_2 = nn.Linear(CLIP_TOKENS * width, CLIP_TOKENS * width)

    def forward(self, embedding: Tensor) -> Tensor:
        hidden = F.gelu(self.linear_1(embedding), approximate="tanh")
        return self.linear_2(hidden).unflatten(-1, (CLIP_TOKENS, -1))


def with_known_frames(config: TransformerConfig, latents: Tensor, known: Tensor | None) -> Tensor:
    """Latents (B, C, T, H, W) with the known frames (B, 2C, T, H, W) as further channels. Raises ValueError."""
    if not config.has_known_frames:
        if known is not None:
            raise ValueError(
                f"`inpaint_latents` is for models of V3 with 12 input channels, this one has {config.in_channels}; "
                "leave it out"
            )
        return latents
    batch, channels, *size = latents.shape
    expected = (batch, 2 * channels, *size)
    if known is None or tuple(known.shape) != expected:
        got = "None" if known is None else f"shape {tuple(known.shape)}"
        raise ValueError(
            f"`inpaint_latents` must have shape {expected}, got {got}; it holds the coded mask and the coded masked "
            "video, zeros where nothing is known is not the same"
        )
    return torch.cat([latents, known.to(latents)], dim=1)


def check_clip(
    config: TransformerConfig, embedding: Tensor | None, mask: Tensor | None, batch: int
) -> tuple[Tensor, Tensor | None] | None:
    """CLIP's embedding and the mask of its tokens; None without. Raises ValueError, one line."""
    if embedding is None:
        return None
    if not config.has_picture:
        raise ValueError(
            "`clip_encoder_hidden_states` is for models that take CLIP's picture, as V3's do; leave it out"
        )
    for name, value, expected in (
        ("clip_encoder_hidden_states", embedding, (batch, CLIP_CHANNELS)),
        ("clip_attention_mask", mask, (batch, CLIP_TOKENS)),
    ):
        if value is not None and tuple(value.shape) != expected:
            raise ValueError(f"`{name}` must have shape {expected}, got {tuple(value.shape)}")
    return embedding, mask


def with_picture(
    text: Tensor, bias: Tensor | None, picture: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Text (B, S, D) and its bias (B, 1, 1, S) with the tokens of the picture (B, 8, D) appended."""
    if bias is not None or mask is not None:
        parts = [
            text.new_zeros(len(text), 1, 1, text.shape[1]) if bias is None else bias,
            text.new_zeros(len(text), 1, 1, CLIP_TOKENS) if mask is None else mask_bias(mask, text.dtype),
        ]
        bias = torch.cat(parts, dim=-1)
    return torch.cat([text, picture], dim=1), bias
