"""Running a network over overlapping tiles of H x W, so that memory stays bounded at any size.

Neighbouring tiles are cross-faded linearly over their overlap. A tile sees less context than the whole frame
(the mid block's attention spans one tile), so the result is close to the whole pass, not equal to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TileSize:
    """Tile geometry, H and W alike: inputs per tile and per step, outputs faded and kept."""

    size: int
    step: int
    fade: int
    keep: int


def tile_size(latents: int, overlap: float, *, shrinks: int = 1, enlarges: int = 1) -> TileSize:
    """Tiles of `latents` latent positions along an edge, sharing the fraction `overlap`.

    shrinks, enlarges: the network's ratio: of an encoder the one, of a decoder the other.

    Differs from EasyAnimate: the shared part is counted in whole latent positions on both sides of the
    network. Rounding each side separately gives a wrong size unless tile and overlap happen to divide.
    """
    shared = int(latents * overlap)
    step = latents - shared
    return TileSize(latents * shrinks, step * shrinks, fade=shared * enlarges, keep=step * enlarges)


def run_tiled(network: Callable[[Tensor], Tensor], x: Tensor, tile: TileSize) -> Tensor:
    """Apply `network` tile by tile.

    Args:
        network: maps (B, C, T, h, w) to (B, C', T', h', w') for any h, w up to the tile's size.
        x: (B, C, T, H, W).
        tile: from `tile_size`.

    Returns:
        (B, C', T', H', W'), the shape of `network(x)`.
    """
    rows: list[Tensor] = []
    above: list[Tensor] = []
    for top in _starts(x.shape[3], tile):
        current: list[Tensor] = []
        kept: list[Tensor] = []
        for left in _starts(x.shape[4], tile):
            out = network(x[:, :, :, top : top + tile.size, left : left + tile.size])
            # The neighbours are the faded ones, as in diffusers' tiled VAE: order matters in the corners.
            if above:
                out = _fade(above[len(current)], out, tile.fade, dim=3)
            if current:
                out = _fade(current[-1], out, tile.fade, dim=4)
            current.append(out)
            out = out[:, :, :, : tile.keep] if x.shape[3] > tile.size else out
            kept.append(out[..., : tile.keep] if x.shape[4] > tile.size else out)
        rows.append(torch.cat(kept, dim=4))
        above = current
    return torch.cat(rows, dim=3)


def _starts(size: int, tile: TileSize) -> Iterator[int]:
    yield from range(0, size, tile.step) if size > tile.size else (0,)


def _fade(before: Tensor, after: Tensor, extent: int, dim: int) -> Tensor:
    extent = min(before.shape[dim], after.shape[dim], extent)
    if extent == 0:
        return after
    shape = [1] * before.ndim
    shape[dim] = extent
    weight = (torch.arange(extent, device=after.device) / extent).to(after.dtype).reshape(shape)
    tail = before.narrow(dim, before.shape[dim] - extent, extent)
    head = tail * (1 - weight) + after.narrow(dim, 0, extent) * weight
    return torch.cat([head, after.narrow(dim, extent, after.shape[dim] - extent)], dim=dim)
