"""Tiled decoding with the bundled model: no seam shows against untiled decoding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ea_runtime.models.loading import load_parts

TILE = 64
#: tile edges fall differently in each: just above a tile, whole steps, odd numbers of latents, one long side
SIZES = [(64, 72), (80, 80), (88, 96), (64, 112), (112, 64), (120, 104), (96, 136), (144, 64), (64, 152)]


@pytest.fixture(scope="module")
def vae():
    return load_parts("tiny", dtype=torch.float32, parts=("vae",)).vae


def pictures(height: int, width: int, count: int = 24) -> Tensor:
    """(B, 3, 1, H, W) in -1..1: soft blotches of three sizes, with the same statistics everywhere."""
    draw = torch.Generator().manual_seed(0)
    found = torch.zeros(count, 3, height, width)
    for cell in (32, 16, 8):
        grid = torch.randn(count, 3, height // cell + 3, width // cell + 3, generator=draw)
        large = interpolate(grid, scale_factor=cell, mode="bicubic")
        for one, picture in zip(large, found, strict=True):
            top, left = torch.randint(cell, 2 * cell, (2,), generator=draw).tolist()
            picture += one[:, top : top + height, left : left + width] * 0.3
    return found.clamp(-1, 1).unsqueeze(2)


def worst_strip(error: Tensor) -> float:
    """The largest error of an 8-pixel strip over the median strip's, across both tiled sides."""
    ratios = []
    for dim in (3, 4):
        if error.shape[dim] > TILE:
            strips = error.mean(dim=[d for d in range(5) if d != dim]).reshape(-1, 8).mean(1)
            ratios.append((strips.max() / strips.median()).item())
    return max(ratios)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@torch.no_grad()
def test_no_strip_is_much_worse_than_the_median_one(vae, size):
    latents = vae.encode(pictures(*size)).latent_dist.mode()
    vae.disable_tiling()
    whole = vae.decode(latents).sample
    vae.enable_tiling(tile_sample_min_size=TILE)
    try:
        ratio = worst_strip((vae.decode(latents).sample - whole).abs())
        assert ratio <= 1.5
    finally:
        vae.disable_tiling()
