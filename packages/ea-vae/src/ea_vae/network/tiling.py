"""Running a network over overlapping tiles of H x W, so that memory stays bounded at any size.

Tiles are of one size and evenly spread; neighbours are cross-faded linearly over all that they share. A tile sees
less context than the whole frame (the mid block's attention spans one tile), so the result is close to the whole
pass, not equal to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: latent positions that neighbours share at least, where they share any: over fewer the seam shows
MIN_SHARED = 3

#: one tile along an edge: where it starts and ends, in latent positions
Span = tuple[int, int]


def tile_spans(length: int, tile: int, overlap: float) -> list[Span]:
    """Tiles along an edge of `length` latent positions: as few as share the fraction `overlap` at least, evenly spread.

    Differs from EasyAnimate: there each tile starts a fixed step after the last one, so that the one at the edge may
    be a sliver without context, or lie wholly within the one before.
    """
    shared = max(int(tile * overlap), min(MIN_SHARED, tile // 2)) if overlap else 0
    step = tile - shared
    gaps = max(-(-(length - tile) // step), 0)
    starts = [gap * (length - tile) // gaps for gap in range(gaps)] + [max(length - tile, 0)]
    return [(start, min(start + tile, length)) for start in starts]


def run_tiled(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    rows: Sequence[Span],
    columns: Sequence[Span],
    in_ratio: int,
    out_ratio: int,
) -> Tensor:
    """Apply `network` tile by tile.

    Args:
        network: maps (B, C, T, h * in_ratio, w * in_ratio) to (B, C', T', h * out_ratio, w * out_ratio).
        x: (B, C, T, H * in_ratio, W * in_ratio), for H x W latent positions.
        rows, columns: the tiles along H and W, from `tile_spans`.
        in_ratio, out_ratio: the network's input and output positions per latent position.

    Returns:
        (B, C', T', H * out_ratio, W * out_ratio), the shape of `network(x)`.
    """
    strips: list[Tensor] = []
    above: list[Tensor] = []
    for row, (top, bottom) in enumerate(rows):
        current: list[Tensor] = []
        kept: list[Tensor] = []
        for column, (left, right) in enumerate(columns):
            part = x[:, :, :, top * in_ratio : bottom * in_ratio, left * in_ratio : right * in_ratio]
            out = network(part)
            # The neighbours are the faded ones, as in diffusers' tiled VAE: order matters in the corners.
            if row:
                out = _fade(above[column], out, (rows[row - 1][1] - top) * out_ratio, dim=3)
            if column:
                out = _fade(current[-1], out, (columns[column - 1][1] - left) * out_ratio, dim=4)
            current.append(out)
            height = (_next_start(rows, row) - top) * out_ratio
            width = (_next_start(columns, column) - left) * out_ratio
            kept.append(out[:, :, :, :height, :width])
        strips.append(torch.cat(kept, dim=4))
        above = current
    return torch.cat(strips, dim=3)


def _next_start(spans: Sequence[Span], index: int) -> int:
    return spans[index + 1][0] if index + 1 < len(spans) else spans[index][1]


def _fade(before: Tensor, after: Tensor, extent: int, dim: int) -> Tensor:
    if extent == 0:
        return after
    shape = [1] * before.ndim
    shape[dim] = extent
    weight = (torch.arange(extent, device=after.device) / extent).to(after.dtype).reshape(shape)
    tail = before.narrow(dim, before.shape[dim] - extent, extent)
    head = tail * (1 - weight) + after.narrow(dim, 0, extent) * weight
    return torch.cat([head, after.narrow(dim, extent, after.shape[dim] - extent)], dim=dim)
