"""Changes to weights before and after training: initialising, inflating, and whitening latents."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ea_vae import AutoencoderKLMagvit
from ea_vae.training.start import LATENT_STD, inflate, initialise, whiten

MODEL = {"ch": 4, "ch_mult": [1, 1, 2, 2], "layers_per_block": 1, "norm_num_groups": 1}


def test_fresh_weights_keep_the_signal_alive() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLMagvit(**MODEL)
    initialise(vae)
    frames = torch.randn(2, 3, 1, 32, 32).clamp(-1, 1)
    with torch.no_grad():
        moments = vae.encode(frames).latent_dist.parameters
        assert 0.1 < moments[:, :4].std() < 10
        assert 0.05 < vae.decode(moments[:, :4]).sample.std() < 10


def test_inflating_changes_nothing_on_one_frame(
    magvit: AutoencoderKLMagvit, noise: Callable[..., torch.Tensor]
) -> None:
    frame, latent = noise(2, 3, 1, 16, 24), noise(2, 4, 1, 2, 3)
    clip = noise(1, 3, 9, 16, 16)
    with torch.no_grad():
        before = magvit.encode(frame).latent_dist.parameters, magvit.decode(latent).sample
        inflate(magvit)
        after = magvit.encode(frame).latent_dist.parameters, magvit.decode(latent).sample
        for one, other in zip(before, after, strict=True):
            assert (one - other).abs().max() < 1e-5 * max(1.0, float(one.abs().max()))
        # a still clip is then encoded as its frame, repeated
        still = frame[:1].expand(-1, -1, 9, -1, -1)
        latents = magvit.encode(still).latent_dist.mode()
        assert latents.shape[2] == 3
        assert magvit.encode(clip).latent_dist.mode().shape == (1, 4, 3, 2, 2)


def test_whitening_keeps_the_round_trip(noise: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLMagvit(**MODEL).double()
    initialise(vae)
    frames = noise(6, 3, 9, 16, 16).double()
    with torch.no_grad():
        vae.quant_conv.bias.copy_(torch.linspace(-3, 3, 8))  # means far from 0, deviations far from 1
        vae.quant_conv.weight.mul_(torch.linspace(0.2, 5.0, 8).view(-1, 1, 1, 1, 1))
        before = vae.encode(frames).latent_dist
        decoded = vae.decode(before.mode()).sample
        mean, std = whiten(vae, before.mode())
        after = vae.encode(frames).latent_dist
        again = vae.decode(after.mode()).sample
    assert torch.allclose(mean, before.mode().mean((0, 2, 3, 4)))
    assert torch.allclose(std, before.mode().std((0, 2, 3, 4)))
    assert (again - decoded).abs().max() < 1e-10
    latents = after.mode() * 0.18215
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-10
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 1e-10
    # the posterior's noise is scaled with its mean
    assert torch.allclose(
        after.std / before.std, (LATENT_STD / std).view(1, -1, 1, 1, 1).expand_as(before.std)
    )
