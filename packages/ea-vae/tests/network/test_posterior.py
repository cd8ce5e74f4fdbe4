from __future__ import annotations

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
