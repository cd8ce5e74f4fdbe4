"""The denoiser as the reference runs it: every step projects the text again, masks padding with a bias, runs both
guidance branches through everything, and permutes tokens for temporal attention and back, 512 rows at a time.

Shapes: latents (B, C, T, H, W), text (B, S, D'), mask (B, S).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 512


def heads(layer: Any, x: Tensor) -> Tensor:
    return x.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)


def attend(layer: Any, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
    q, k, v = (
        heads(layer, layer.to_q(x)),
        heads(layer, layer.to_k(context)),
        heads(layer, layer.to_v(context)),
    )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
    return layer.to_out[0](out)


def attend_temporally(layer: Any, x: Tensor) -> Tensor:
    """(N, T, D), with explicit scores, one slice of rows at a time."""
    q, k, v = (heads(layer, project(x)) for project in (layer.to_q, layer.to_k, layer.to_v))
    parts = []
    for start in range(0, x.shape[0], ROWS):
        rows = slice(start, start + ROWS)
        scores = torch.matmul(q[rows], k[rows].transpose(-1, -2)) * q.shape[-1] ** -0.5
        parts.append(torch.matmul(scores.softmax(-1), v[rows]))
    return layer.to_out[0](torch.cat(parts).transpose(1, 2).flatten(2))


def motion(module: Any, x: Tensor, frames: int, height: int, width: int) -> Tensor:
    net, n = module.temporal_transformer, module.temporal_transformer.block_size
    batch, depth = x.shape[0], x.shape[-1]
    images = (
        x.reshape(batch * frames, height * width, depth).transpose(1, 2).reshape(-1, depth, height, width)
    )
    h = net.norm(images.contiguous()).flatten(2).transpose(1, 2)  # (B * T, L, D)
    h = net.proj_in(h)
    grid = (batch, frames, height // n, n, width // n, n, h.shape[-1])
    for block in net.transformer_blocks:
        for attention, norm in zip(block.attention_blocks, block.norms, strict=True):
            rows = norm(h).reshape(grid).permute(0, 2, 4, 1, 3, 5, 6).flatten(3, 5).flatten(0, 2)
            if attention.pos_encoder is not None:
                rows = attention.pos_encoder(rows, frames)
            out = attend_temporally(attention, rows)  # (B * h * w, T * n * n, D)
            back = (batch, height // n, width // n, frames, n, n, -1)
            out = out.reshape(back).permute(0, 3, 1, 4, 2, 5, 6).reshape(h.shape)
            h = h + out
        h = h + block.ff(block.ff_norm(h))
    return x + net.proj_out(h).reshape(x.shape)


def forward(model: Any, latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """-> (B, out_channels, T, H, W)."""
    cfg = model.cfg
    _, _, frames, *size = latents.shape
    height, width = (one // cfg.patch_size for one in size)
    context = text if model.caption_projection is None else model.caption_projection(text)
    bias = ((1 - mask.to(latents.dtype)) * -10000.0)[:, None, None]
    x = model.pos_embed(latents)
    modulation, embedded = model.adaln_single(timestep, None, None, x.dtype)
    skips = []
    for index, block in enumerate(model.blocks):
        if index >= cfg.first_skip_block:
            x = x + model.long_connect_fc[index - cfg.first_skip_block](skips.pop())
        shift1, scale1, gate1, shift2, scale2, gate2 = (block.scale_shift_table + modulation).chunk(6, dim=1)
        h = block.norm1(x) * (1 + scale1) + shift1
        h = h.reshape(-1, height * width, h.shape[-1])
        x = x + gate1 * attend(block.attn1, h, h).reshape(x.shape)
        x = motion(block.attn_temporal, x, frames, height, width)
        x = x + attend(block.attn2, x, context, bias)
        x = x + gate2 * block.ff(block.norm2(x) * (1 + scale2) + shift2)
        if index < cfg.num_skips:
            skips.append(x)
    shift, scale = (model.scale_shift_table + embedded[:, None]).chunk(2, dim=1)
    x = model.proj_out(model.norm_out(x) * (1 + scale) + shift)
    p = cfg.patch_size
    x = x.reshape(x.shape[0], frames, height, width, p, p, -1)
    return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(x.shape[0], -1, frames, height * p, width * p)


def step(
    model: Any,
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    mask: Tensor,
    guidance: float,
    known: Tensor | None = None,
) -> Tensor:
    """Guided noise of one step: latents (1, C, T, H, W); text and mask have two rows, unconditional and conditional.

    known: the other channels of a model that takes known frames; None: zeros.
    """
    batch, channels, *rest = latents.shape
    if known is None:
        known = latents.new_zeros(batch, model.cfg.in_channels - channels, *rest)
    given = torch.cat([latents, known], dim=1)
    out = forward(model, torch.cat([given, given]), timestep.expand(2), text, mask)
    without, with_text = out[:, :channels].chunk(2)
    return without + guidance * (with_text - without)
