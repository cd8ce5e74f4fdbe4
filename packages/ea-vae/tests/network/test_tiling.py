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
