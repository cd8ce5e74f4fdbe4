from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ea_vae.network.posterior import NoiseStream, Posterior


def test_kl_is_summed_per_video(noise):
    moments, others = noise(2, 8, 3, 2, 2), noise(2, 8, 3, 2, 2, seed=1)
    one, other = Posterior(moments), Posterior(others)
    standard = Normal(torch.zeros_like(one.mean), torch.ones_like(one.mean))
    wanted = kl_divergence(Normal(one.mean, one.std), standard).sum(dim=(1, 2, 3, 4))
    assert torch.allclose(one.kl(), wanted, rtol=1e-5)
    wanted = kl_divergence(Normal(one.mean, one.std), Normal(other.mean, other.std)).sum(dim=(1, 2, 3, 4))
    assert torch.allclose(one.kl(other), wanted, rtol=1e-5)


def test_noise_drawn_at_once_does_not_depend_on_the_pieces(noise):
    moments = noise(1, 8, 6, 2, 2)

    def draw(*pieces: int) -> torch.Tensor:
        stream = NoiseStream(torch.Generator().manual_seed(0), num_whole=6)
        return torch.cat([stream.sample(part) for part in moments.split(pieces, dim=2)], dim=2)

    whole = Posterior(moments).sample(torch.Generator().manual_seed(0))
    assert torch.equal(draw(6), whole)
    assert torch.equal(draw(1, 2, 3), whole)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_log_variances_are_held_within_their_limits():
    logvar = torch.tensor([-100.0, -30.0, 0.0, 20.0, 100.0]).reshape(1, 1, 5, 1, 1)
    one = Posterior(torch.cat([torch.full_like(logvar, 3.0), logvar], dim=1))
    assert one.logvar.flatten().tolist() == [-30, -30, 0, 20, 20]
    assert torch.equal(one.std, torch.exp(0.5 * one.logvar))
    assert torch.equal(one.var, torch.exp(one.logvar))
    assert torch.equal(one.mode(), torch.full_like(logvar, 3.0))


def test_latents_are_the_mean_and_noise_of_the_deviation(noise):
    """float32, and every axis of another length."""
    moments = noise(3, 8, 5, 4, 6)
    mean, std = moments[:, :4], torch.exp(0.5 * moments[:, 4:])
    drawn = torch.randn(mean.shape, generator=seeded())
    assert torch.equal(Posterior(moments).sample(seeded()), mean + std * drawn)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_noise_is_drawn_in_the_format_of_the_moments(noise, dtype):
    moments = noise(1, 8, 3, 2, 2).to(dtype)
    one = Posterior(moments)
    drawn = torch.randn(one.mean.shape, generator=seeded(), dtype=dtype)
    for found in (one.sample(seeded()), NoiseStream(seeded(), None).sample(moments)):
        assert found.dtype == dtype
        assert torch.equal(found, one.mean + one.std * drawn)


def test_noise_of_pieces_is_drawn_for_each_and_begins_after_those_before(noise):
    """A stream that begins later draws what came before and drops it; at once or piece by piece."""
    moments = noise(3, 8, 7, 4, 6)
    sizes = (2, 1, 3, 1)
    posteriors = [Posterior(part) for part in moments.split(sizes, dim=2)]
    generator = seeded()
    wanted = {None: [one.sample(generator) for one in posteriors], 7: None}
    wanted[7] = list(Posterior(moments).sample(seeded()).split(sizes, dim=2))
    for whole, latents in wanted.items():
        assert latents is not None
        for first in range(4):
            stream = NoiseStream(seeded(), whole, sizes[:first])
            for part, expected in list(zip(moments.split(sizes, dim=2), latents, strict=True))[first:]:
                assert torch.equal(stream.sample(part), expected)
