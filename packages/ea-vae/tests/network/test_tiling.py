from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ea_vae.network.tiling import run_tiled, tile_spans


def enlarge(x: torch.Tensor) -> torch.Tensor:
    """A stand-in network that repeats each input position 8 times: tiles must join without a trace."""
    return x.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)


def reduce(x: torch.Tensor) -> torch.Tensor:
    """Its inverse."""
    return x[:, :, :, ::8, ::8]


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (7, 9), (4, 13), (13, 3)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.3, 0.5])
def test_tiles_join_without_a_trace(noise, size, overlap):
    z = noise(1, 2, 3, *size)
    x = enlarge(z)
    rows, columns = (tile_spans(length, 4, overlap) for length in size)
    assert torch.allclose(run_tiled(enlarge, z, rows, columns, 1, 8), x, atol=1e-6)
    assert torch.allclose(run_tiled(reduce, x, rows, columns, 8, 1), z, atol=1e-6)


@pytest.mark.parametrize("tile", [1, 2, 5, 8, 48])
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5])
def test_tiles_are_whole_evenly_spread_and_share_enough(tile, overlap):
    """No sliver, at any length: the reference's last tile may hold one latent position."""
    for length in range(1, 4 * tile + 3):
        spans = tile_spans(length, tile, overlap)
        assert (spans[0][0], spans[-1][1]) == (0, length)
        assert {end - start for start, end in spans} == {min(tile, length)}
        shared = [before[1] - after[0] for before, after in pairwise(spans)]
        assert all(one >= int(tile * overlap) for one in shared)
        assert max(shared, default=0) - min(shared, default=0) <= 1


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "spans"),
    [
        (3, 4, 0.25, [(0, 3)]),
        (4, 4, 0.25, [(0, 4)]),
        (8, 4, 0.0, [(0, 4), (4, 8)]),  # none is wanted
        (13, 8, 0.1, [(0, 8), (5, 13)]),  # at least three positions
        (6, 4, 0.1, [(0, 4), (2, 6)]),  # but no more than half a tile
        (7, 4, 0.1, [(0, 4), (1, 5), (3, 7)]),
        (20, 8, 0.5, [(0, 8), (4, 12), (8, 16), (12, 20)]),
        (21, 8, 0.5, [(0, 8), (3, 11), (6, 14), (9, 17), (13, 21)]),
    ],
)
def test_as_few_tiles_as_share_enough(length, tile, overlap, spans):
    assert tile_spans(length, tile, overlap) == spans


def joined_by_hand(rows, columns, ratio: int, values: torch.Tensor) -> torch.Tensor:
    """Tiles of one value each: pixel by pixel, first cross-faded with the tile above, then with the one on the left."""
    tiles: dict[tuple[int, int], torch.Tensor] = {}
    canvas = torch.full((rows[-1][1] * ratio, columns[-1][1] * ratio), torch.nan, dtype=values.dtype)
    for row, (top, bottom) in enumerate(rows):
        for column, (left, right) in enumerate(columns):
            tile = values[row, column].expand((bottom - top) * ratio, (right - left) * ratio).clone()
            shared = (rows[row - 1][1] - top) * ratio if row else 0
            for at in range(shared):
                above = tiles[row - 1, column][at - shared]
                tile[at] = above + (tile[at] - above) * at / shared
            shared = (columns[column - 1][1] - left) * ratio if column else 0
            for at in range(shared):
                before = tiles[row, column - 1][:, at - shared]
                tile[:, at] = before + (tile[:, at] - before) * at / shared
            tiles[row, column] = tile
            canvas[top * ratio : bottom * ratio, left * ratio : right * ratio] = tile
    return canvas


#: neighbours that share three positions, one or none; tiles of different sizes
UNEVEN = [(0, 5), (2, 6), (5, 9), (9, 12)]


@pytest.mark.parametrize("ratio", [1, 2])
def test_neighbours_are_cross_faded_over_all_that_they_share(ratio):
    rows, columns = UNEVEN, [(0, 4), (3, 7), (4, 9)]
    values = torch.rand(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = iter(values.flatten())
    x = torch.zeros(1, 1, 1, 12, 9, dtype=torch.float64)

    def network(part: torch.Tensor) -> torch.Tensor:
        return next(seen) * torch.ones_like(part).repeat_interleave(ratio, 3).repeat_interleave(ratio, 4)

    found = run_tiled(network, x, rows, columns, 1, ratio)
    torch.testing.assert_close(found[0, 0, 0], joined_by_hand(rows, columns, ratio, values))
    assert next(seen, None) is None


def test_tiles_keep_their_format():
    spans = [(0, 4), (1, 5)]
    for dtype in (torch.bfloat16, torch.float64):
        x = torch.arange(25, dtype=dtype).reshape(1, 1, 1, 5, 5)
        found = run_tiled(lambda part: part, x, spans, spans, 1, 1)
        torch.testing.assert_close(found, x)


@torch.no_grad()
def test_tiling_starts_above_the_tile(magvit, noise):
    z = noise(1, 4, 3, 4, 4)
    whole = magvit.decode(z).sample
    magvit.enable_tiling(tile_sample_min_size=32)
    assert torch.equal(magvit.decode(z).sample, whole)
    magvit.enable_tiling(tile_sample_min_size=16)
    assert magvit.decode(z).sample.shape == whole.shape
    assert not torch.allclose(magvit.decode(z).sample, whole)
    magvit.disable_tiling()
    assert torch.equal(magvit.decode(z).sample, whole)


@torch.no_grad()
def test_one_long_side_is_enough(magvit, noise):
    seen = []
    magvit.decoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[3:])))
    magvit.enable_tiling(tile_sample_min_size=16, tile_overlap_factor=0.5)
    assert magvit.decode(noise(1, 4, 1, 2, 6)).sample.shape == (1, 3, 1, 16, 48)
    assert seen
    assert all(height <= 2 and width <= 2 for height, width in seen)


def test_gradients_flow_through_tiles(magvit, noise):
    magvit.enable_tiling(tile_sample_min_size=16)
    z = noise(1, 4, 1, 4, 4).requires_grad_()
    magvit.decode(z).sample.sum().backward()
    assert z.grad is not None
    assert (z.grad != 0).all()


def test_errors(magvit):
    with pytest.raises(ValueError, match="multiple of 8, got 20; use 16"):
        magvit.enable_tiling(tile_sample_min_size=20)
    with pytest.raises(ValueError, match=r"from 0 to 0\.5, got 0\.9"):
        magvit.enable_tiling(tile_overlap_factor=0.9)
    assert not magvit.use_tiling
