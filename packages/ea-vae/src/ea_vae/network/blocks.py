"""Encoder and decoder of the VAE, and their blocks.

Shapes: B batch, C channels, T frames (latent frames deep inside), H and W rows and columns. Every module maps
(B, C, T, H, W) to (B, C', T', H', W') and takes the pass's `Mode`, so that no module holds state.
Attribute names are the state-dict keys of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .config import BlockSpec, VaeConfig
from .conv import CausalConv3d, Mode, PointwiseConv3d
from .norm import GroupNorm
from .rewrites import double_time

NORM_EPS = 1e-6

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "mish": F.mish,
}
# The same, overwriting the input: nobody else holds a norm's output, and fresh memory costs as much as the function.
_OVERWRITING: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": partial(F.silu, inplace=True),
    "swish": partial(F.silu, inplace=True),
    "relu": F.relu_,
    "mish": partial(F.mish, inplace=True),
}
_LAYOUTS = {
    "3d": "b c t h w -> b (t h w) c",
    "spatial": "b c t h w -> (b t) (h w) c",
    "temporal": "b c t h w -> (b h w) t c",
}


def _activate(name: str, x: Tensor) -> Tensor:
    """The activation of a norm's output, which is overwritten unless gradients are recorded."""
    overwriting = None if torch.is_grad_enabled() else _OVERWRITING.get(name)
    return (overwriting or _ACTIVATIONS[name])(x)


class ResidualBlock3D(nn.Module):
    """Twice (norm, activation, conv), added to the input (through a 1x1x1 conv where the width changes)."""

    def __init__(self, in_channels: int, out_channels: int, config: VaeConfig) -> None:
        super().__init__()
        self.norm1 = GroupNorm(config.norm_num_groups, in_channels, eps=NORM_EPS)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = GroupNorm(config.norm_num_groups, out_channels, eps=NORM_EPS)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else PointwiseConv3d(in_channels, out_channels)
        self.activation = partial(_activate, config.act_fn)

    def forward(self, x: Tensor, mode: Mode) -> Tensor:
        h = self.conv1(self.activation(self.norm1(x)), mode)
        h = self.conv2(self.activation(self.norm2(h)), mode)
        return h + self.shortcut(x) if torch.is_grad_enabled() else h.add_(self.shortcut(x))


class VideoAttention(nn.Module):
    """Self-attention over the positions that `layout` joins into one sequence, with a residual connection.

    layout "3d": all of T, H, W. "spatial": H, W of each frame. "temporal": T of each position.
    """

    def __init__(self, channels: int, num_heads: int, layout: str, config: VaeConfig) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"attention heads must divide the width {channels}, got {num_heads}")
        self.num_heads = num_heads
        self.pattern = _LAYOUTS[layout]
        self.group_norm = GroupNorm(config.norm_num_groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, _, t, h, w = x.shape
        tokens = rearrange(x, self.pattern)  # N L C
        normed = self.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        q, k, v = (
            rearrange(project(normed), "n l (heads d) -> n heads l d", heads=self.num_heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        out = F.scaled_dot_product_attention(q, k, v)  # N heads L D
        out = self.to_out(rearrange(out, "n heads l d -> n l (heads d)")) + tokens
        source, target = self.pattern.split(" -> ")
        return rearrange(out, f"{target} -> {source}", b=b, t=t, h=h, w=w)


class Downsampler(nn.Module):
    """Strided convolution: halves H and W, T, or all three (T becomes ceil(T / 2))."""

    def __init__(self, channels: int, spec: BlockSpec) -> None:
        super().__init__()
        self.halves_space = spec.resamples_space
        space, time = 2 if spec.resamples_space else 1, 2 if spec.resamples_time else 1
        self.conv = CausalConv3d(
            channels, channels, stride=(time, space, space), spatial_padding=0 if self.halves_space else 1
        )

    def forward(self, x: Tensor, mode: Mode) -> Tensor:
        if self.halves_space:
            x = F.pad(x, (0, 1, 0, 1))  # one column on the right and one row below, as Stable Diffusion's VAE
        return self.conv(x, mode)


class Upsampler(nn.Module):
    """Nearest in space before the convolution, linear in time after it.

    In causal mode frame 0 stays one frame and the others become two each: T -> 2 T - 1. Slice mode: T -> 2 T.
    """

    def __init__(self, channels: int, spec: BlockSpec) -> None:
        super().__init__()
        self.doubles_space = spec.resamples_space
        self.doubles_time = spec.resamples_time
        self.conv = CausalConv3d(channels, channels)

    def forward(self, x: Tensor, mode: Mode) -> Tensor:
        if self.doubles_space:
            x = self.conv(x, mode, True)
            return self._double_time(x, mode) if self.doubles_time else x
        # The sampler of time alone enlarges before the convolution.
        return self.conv(self._double_time(x, mode), mode)

    @staticmethod
    def _double_time(x: Tensor, mode: Mode) -> Tensor:
        if mode == "single" or (mode == "causal" and x.shape[2] == 1):
            return x
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return double_time(x, keep_first=mode == "causal")
        if mode == "slice":
            return F.interpolate(x, scale_factor=(2, 1, 1), mode="trilinear")
        rest = F.interpolate(x[:, :, 1:], scale_factor=(2, 1, 1), mode="trilinear")
        return torch.cat([x[:, :, :1], rest], dim=2)


class ResidualStack(nn.Module):
    """`num_layers` residual blocks, each followed by its attention where the block type has one."""

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, spec: BlockSpec, config: VaeConfig
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        self.attentions = nn.ModuleList()
        for i in range(num_layers):
            self.convs.append(ResidualBlock3D(in_channels if i == 0 else out_channels, out_channels, config))
            if spec.attention is not None:
                heads = config.num_attention_heads
                self.attentions.append(VideoAttention(out_channels, heads, spec.attention, config))

    def forward(self, x: Tensor, mode: Mode) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = conv(x, mode)
            if len(self.attentions):
                x = self.attentions[i](x)
        return x


class DownBlock(ResidualStack):
    """`layers_per_block` residual blocks, then the downsampler."""

    def __init__(
        self, in_channels: int, out_channels: int, spec: BlockSpec, is_last: bool, config: VaeConfig
    ) -> None:
        super().__init__(in_channels, out_channels, config.layers_per_block, spec, config)
        resamples = not is_last and (spec.resamples_space or spec.resamples_time)
        self.downsampler = Downsampler(out_channels, spec) if resamples else None

    def forward(self, x: Tensor, mode: Mode) -> Tensor:
        x = super().forward(x, mode)
        return x if self.downsampler is None else self.downsampler(x, mode)


class UpBlock(ResidualStack):
    """`layers_per_block` + 1 residual blocks, then the upsampler."""

    def __init__(
        self, in_channels: int, out_channels: int, spec: BlockSpec, is_last: bool, config: VaeConfig
    ) -> None:
        super().__init__(in_channels, out_channels, config.layers_per_block + 1, spec, config)
        self.upsampler = None if is_last else Upsampler(out_channels, spec)

    def forward(self, x: Tensor, mode: Mode) -> Tensor:
        x = super().forward(x, mode)
        return x if self.upsampler is None else self.upsampler(x, mode)


class MidBlock3D(nn.Module):
    """A residual block, then `layers_per_block` - 1 times attention and a residual block."""

    def __init__(self, channels: int, config: VaeConfig) -> None:
        super().__init__()
        num_more = config.layers_per_block - 1
        self.convs = nn.ModuleList(ResidualBlock3D(channels, channels, config) for _ in range(1 + num_more))
        self.attentions = nn.ModuleList()
        if config.mid_block_use_attention:
            for _ in range(num_more):
                self.attentions.append(_mid_attention(channels, config))

    def forward(self, x: Tensor, mode: Mode) -> Tensor:
        for i, conv in enumerate(self.convs):
            if i > 0 and len(self.attentions):
                x = self.attentions[i - 1](x)
            x = conv(x, mode)
        return x


def _mid_attention(channels: int, config: VaeConfig) -> nn.Module:
    heads, kind = config.mid_block_num_attention_heads, config.mid_block_attention_type
    if kind == "spatial_temporal":
        layouts = ("spatial", "temporal")
        return nn.Sequential(*(VideoAttention(channels, heads, layout, config) for layout in layouts))
    return VideoAttention(channels, heads, kind, config)


class Encoder(nn.Module):
    """Frames (B, in_channels, T, H, W) to raw moments (B, 2 x latent_channels, T', H', W')."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False  # set by diffusers' `enable_gradient_checkpointing`
        self._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        widths = config.channels
        self.conv_in = CausalConv3d(config.in_channels, widths[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[max(i - 1, 0)], width, spec, i == len(widths) - 1, config)
            for i, (width, spec) in enumerate(zip(widths, config.down_specs, strict=True))
        )
        self.mid_block = MidBlock3D(widths[-1], config)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.latent_channels)
        self.activation = partial(_activate, config.act_fn)

    def forward(self, x: Tensor, mode: Mode = "causal") -> Tensor:
        x = self.conv_in(x, mode)
        for block in self.down_blocks:
            x = _checkpointed(self, block, x, mode)
        x = _checkpointed(self, self.mid_block, x, mode)
        return self.conv_out(self.activation(self.conv_norm_out(x)), mode)


class Decoder(nn.Module):
    """Latents (B, latent_channels, T, H, W) to frames (B, out_channels, T', H', W').

    `num_before` and `num_after` (slice mode) say how many leading and trailing latent frames belong to the
    neighbouring slices: they pass `conv_in` and `mid_block` with the others and are dropped then.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.gradient_checkpointing = False  # set by diffusers' `enable_gradient_checkpointing`
        self._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        widths = config.channels[::-1]
        self.conv_in = CausalConv3d(config.latent_channels, widths[0])
        self.mid_block = MidBlock3D(widths[0], config)
        self.up_blocks = nn.ModuleList(
            UpBlock(widths[max(i - 1, 0)], width, spec, i == len(widths) - 1, config)
            for i, (width, spec) in enumerate(zip(widths, config.up_specs, strict=True))
        )
        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = CausalConv3d(widths[-1], config.out_channels)
        self.activation = partial(_activate, config.act_fn)

    def forward(self, z: Tensor, mode: Mode = "causal", num_before: int = 0, num_after: int = 0) -> Tensor:
        x = _checkpointed(self, self.mid_block, self.conv_in(z, mode), mode)
        x = x[:, :, num_before : x.shape[2] - num_after]
        for block in self.up_blocks:
            x = _checkpointed(self, block, x, mode)
        return self.conv_out(self.activation(self.conv_norm_out(x)), mode)


def _checkpointed(owner: Encoder | Decoder, block: nn.Module, x: Tensor, mode: Mode) -> Tensor:
    if owner.gradient_checkpointing and torch.is_grad_enabled():
        return owner._gradient_checkpointing_func(block, x, mode)
    return block(x, mode)
