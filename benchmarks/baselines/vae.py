"""The VAE as the reference runs it: every padding is a copy, and H and W are upsampled before the convolution.

Shapes: frames (B, 3, T, H, W), latents (B, 4, t, h, w).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def conv(layer: Any, x: Tensor, padding: int = 1) -> Tensor:
    """Pads time in front with frame 0 and space with zeros, then convolves the padded tensor."""
    x = F.pad(x, (0, 0, 0, 0, 2, 0), mode="replicate")
    x = F.pad(x, (padding, padding, padding, padding))
    return F.conv3d(x, layer.weight, layer.bias, layer.stride)


def residual(block: Any, x: Tensor) -> Tensor:
    h = conv(block.conv1, F.silu(block.norm1(x)))
    h = conv(block.conv2, F.silu(block.norm2(h)))
    return h + block.shortcut(x)


def attention(layer: Any, x: Tensor) -> Tensor:
    shape = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    normed = layer.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
    q, k, v = (
        p(normed).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
        for p in (layer.to_q, layer.to_k, layer.to_v)
    )
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return (layer.to_out(out) + tokens).transpose(1, 2).reshape(shape)


def middle(block: Any, x: Tensor) -> Tensor:
    for i, one in enumerate(block.convs):
        if i and len(block.attentions):
            x = attention(block.attentions[i - 1], x)
        x = residual(one, x)
    return x


def upsample(layer: Any, x: Tensor) -> Tensor:
    x = conv(layer.conv, F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest"))
    if not layer.doubles_time or x.shape[2] == 1:
        return x
    rest = F.interpolate(x[:, :, 1:], scale_factor=(2, 1, 1), mode="trilinear")
    return torch.cat([x[:, :, :1], rest], dim=2)


def decode(vae: Any, z: Tensor) -> Tensor:
    """One chunk: latents (B, 4, t, h, w) -> frames (B, 3, T, 8h, 8w)."""
    net = vae.decoder
    x = middle(net.mid_block, conv(net.conv_in, vae.post_quant_conv(z)))
    for block in net.up_blocks:
        for one in block.convs:
            x = residual(one, x)
        x = x if block.upsampler is None else upsample(block.upsampler, x)
    return conv(net.conv_out, F.silu(net.conv_norm_out(x)))


def encode(vae: Any, x: Tensor) -> Tensor:
    """One chunk: frames (B, 3, T, H, W) -> moments (B, 8, t, H / 8, W / 8)."""
    net = vae.encoder
    x = conv(net.conv_in, x)
    for block in net.down_blocks:
        for one in block.convs:
            x = residual(one, x)
        if block.downsampler is not None:
            halves = block.downsampler.halves_space
            x = F.pad(x, (0, 1, 0, 1)) if halves else x
            x = conv(block.downsampler.conv, x, 0 if halves else 1)
    x = conv(net.conv_out, F.silu(net.conv_norm_out(middle(net.mid_block, x))))
    return vae.quant_conv(x)


def decode_video(vae: Any, latents: Tensor, smooth: bool, generator: torch.Generator | None = None) -> Tensor:
    """(1, 4, t, h, w) -> (1, 3, T, 8h, 8w) in memory, chunk by chunk.

    smooth: frames 4 to -5 are encoded and decoded once more and averaged with the first result. generator: for the
    noise of that second pass, drawn chunk by chunk on the CPU.
    """
    frames = torch.cat([decode(vae, z) for z in latents.split(3, dim=2)], dim=2).clamp(-1, 1)
    if smooth and frames.shape[2] > 9:
        inner = frames[:, :, 4:-5]
        coded = []
        for x in inner.split(9, dim=2):
            mean, logvar = encode(vae, x).chunk(2, dim=1)
            noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
            coded.append(mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise)
        again = torch.cat([decode(vae, z) for z in torch.cat(coded, dim=2).split(3, dim=2)], dim=2)
        frames[:, :, 4:-5] = (inner + again) / 2
    return frames.clamp(-1, 1)
