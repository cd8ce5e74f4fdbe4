"""Inputs of the network: patches with 2-D positions, timestep (and size) conditioning, text projection."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .config import TIME_CHANNELS, TransformerConfig
from .linear import Linear


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of real positions: (N,) -> (N, dim), sines first, base 10,000.

    Source: Vaswani et al. 2017, section 3.5, arranged as in MAE and PixArt (all sines, then all cosines).
    """
    half = torch.arange(dim // 2, dtype=positions.dtype, device=positions.device)
    angles = torch.outer(positions, torch.exp(half * (-math.log(10000.0) / (dim // 2))))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def position_embedding_2d(
    height: int, width: int, dim: int, base_size: int, scale: float, device: torch.device
) -> Tensor:
    """Fixed embedding of a height x width grid of patches: (height * width, dim), float32.

    Positions of any grid are interpolated to 0 .. base_size / scale, so that a model trained at one size
    meets coordinates that it knows at every other. The first half of `dim` holds the column, the second the
    row.
    """
    # Differs from EasyAnimate, which computes in float64 on the host at each call: float32 is off by less
    # than 5e-6, needs no transfer, and leaves no float64 in exported graphs, where TensorRT refuses it.
    rows = torch.arange(height, dtype=torch.float32, device=device) * (base_size / height / scale)
    columns = torch.arange(width, dtype=torch.float32, device=device) * (base_size / width / scale)
    row_part = sincos_1d(rows, dim // 2)[:, None].expand(height, width, dim // 2)
    column_part = sincos_1d(columns, dim // 2)[None, :].expand(height, width, dim // 2)
    return torch.cat([column_part, row_part], dim=-1).flatten(0, 1)  # (height * width, dim)


class PatchEmbed(nn.Module):
    """Cut each latent frame into patches and add their 2-D positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.base_size = config.sample_size // config.patch_size
        self.scale = max(config.sample_size // 64, 1)  # the 64-latent (512-pixel) model defines scale 1
        patch = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.width, kernel_size=patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, T * L, D) with L = H/p * W/p tokens per frame."""
        num_frames = latents.shape[2]
        height, width = latents.shape[-2] // self.patch_size, latents.shape[-1] // self.patch_size
        patches = self.proj(rearrange(latents, "b c t h w -> (b t) c h w"))  # (B * T, D, H/p, W/p)
        tokens = rearrange(patches, "(b t) d h w -> b t (h w) d", t=num_frames)
        positions = position_embedding_2d(
            height, width, tokens.shape[-1], self.base_size, self.scale, tokens.device
        )
        return (tokens + positions).to(tokens.dtype).flatten(1, 2)  # (B, T * L, D)


def timestep_features(values: Tensor) -> Tensor:
    """(N,) timesteps, pixels or ratios -> (N, 256) sinusoids, cosines first, float32 (Ho et al. 2020)."""
    half = TIME_CHANNELS // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[:, None] * torch.exp(steps * (-math.log(10000.0) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class FeatureMLP(nn.Module):
    """Linear, SiLU, Linear over sinusoidal features: (N, 256) -> (N, out)."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = Linear(TIME_CHANNELS, out_channels)
        self.linear_2 = Linear(out_channels, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))


class ConditionEmbedding(nn.Module):
    """Timestep, and for the 1024-pixel model resolution and aspect ratio, as one vector of width D."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.timestep_embedder = FeatureMLP(config.width)
        self.has_size_conditions = config.has_size_conditions
        if self.has_size_conditions:
            self.resolution_embedder = FeatureMLP(config.width // 3)
            self.aspect_ratio_embedder = FeatureMLP(config.width // 3)
            for mlp in (self.resolution_embedder, self.aspect_ratio_embedder):
                nn.init.zeros_(mlp.linear_2.weight)
                nn.init.zeros_(mlp.linear_2.bias)

    def forward(
        self, timestep: Tensor, resolution: Tensor | None, aspect_ratio: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """timestep (B,), resolution (B, 2) in pixels and aspect_ratio (B, 1) or None -> (B, D)."""
        embedded = self.timestep_embedder(timestep_features(timestep).to(dtype))  # (B, D)
        if not self.has_size_conditions:
            return embedded
        assert resolution is not None  # both checked by size_conditions()
        assert aspect_ratio is not None
        size = self.resolution_embedder(timestep_features(resolution.flatten()).to(dtype))  # (2B, D/3)
        ratio = self.aspect_ratio_embedder(timestep_features(aspect_ratio.flatten()).to(dtype))  # (B, D/3)
        return embedded + torch.cat([size.reshape(len(ratio), -1), ratio], dim=1)


class AdaLayerNormSingle(nn.Module):
    """adaLN-single: one modulation for all blocks, each adds its table (PixArt-alpha, arXiv 2310.00426)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.emb = ConditionEmbedding(config)
        self.linear = Linear(config.width, 6 * config.width)

    def forward(
        self, timestep: Tensor, resolution: Tensor | None, aspect_ratio: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """-> modulation (B, 6, D), shift, scale, gate of attention, then of the MLP; embedding (B, D)."""
        embedded = self.emb(timestep, resolution, aspect_ratio, dtype)
        return self.linear(F.silu(embedded)).unflatten(1, (6, -1)), embedded


class TextProjection(nn.Module):
    """Linear, tanh-GELU, Linear: (B, S, caption_channels) -> (B, S, D)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = Linear(in_channels, out_channels)
        self.linear_2 = Linear(out_channels, out_channels)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))
