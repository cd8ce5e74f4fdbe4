"""The loss's terms against values computed by hand, and the adaptive weight against gradients written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from ea_vae.network.posterior import Posterior
from ea_vae.training import losses


def test_pixel_loss_of_each_sample() -> None:
    frames = torch.zeros(2, 3, 1, 2, 2)
    output = frames.clone()
    output[0] += 0.5  # |d| = 0.5, d^2 = 0.25 everywhere
    output[1, 0] -= 1.0  # a third of the elements off by 1
    weighted, l1, mse = losses.pixel_loss(output, frames, 2.0, 0.1)
    assert l1.tolist() == pytest.approx([0.5, 1 / 3])
    assert mse.tolist() == pytest.approx([0.25, 1 / 3])
    assert weighted.tolist() == pytest.approx([1.025, 2 / 3 + 0.1 / 3])


def test_kl_is_zero_for_a_standard_normal_and_agrees_with_the_posterior(
    noise: Callable[..., torch.Tensor],
) -> None:
    zeros = torch.zeros(2, 4, 3, 2, 2)
    assert losses.kl_loss(zeros, zeros) == 0
    # mean 2, variance 1: 0.5 * 4 per latent
    assert losses.kl_loss(zeros + 2, zeros) == pytest.approx(2.0)
    # variance e: 0.5 * (e - 1 - 1)
    assert float(losses.kl_loss(zeros, zeros + 1)) == pytest.approx(0.5 * (math.e - 2))
    moments = noise(2, 8, 3, 2, 2)
    posterior = Posterior(moments)
    mean = float(losses.kl_loss(posterior.mean, posterior.logvar))
    assert mean == pytest.approx(float(posterior.kl().mean()) / (4 * 3 * 2 * 2), rel=1e-5)


def test_psnr() -> None:
    assert losses.psnr(4.0) == 0
    assert losses.psnr(0.04) == pytest.approx(20)
    assert losses.psnr(0.0) < 200
    assert math.isnan(losses.psnr(math.nan))
    assert math.isnan(losses.psnr(math.inf))


def test_scales_are_easyanimates_sums(noise: Callable[..., torch.Tensor]) -> None:
    """Sums over elements divided by frames, and KL summed per video, written out with torch.sum."""
    frames, output, latents = noise(2, 3, 9, 16, 24), noise(2, 3, 9, 16, 24, seed=1), noise(2, 4, 3, 2, 3)
    per_frame, per_video = losses.scales(frames, latents, "sum")
    mean = losses.pixel_loss(output, frames, 1.0, 0.0)[0].mean()
    assert float(mean) * per_frame == pytest.approx(float((output - frames).abs().sum() / (2 * 9)), rel=1e-5)
    kl = Posterior(torch.cat([latents, 0.1 * latents], dim=1))
    mean_kl = losses.kl_loss(kl.mean, kl.logvar)
    assert float(mean_kl) * per_video == pytest.approx(float(kl.kl().sum() / 2), rel=1e-5)
    # as the docstring and the published config say of weights with means
    assert per_video / per_frame == pytest.approx(3 / 48)
    assert losses.scales(frames, latents, "mean") == (1.0, 1.0)
    with pytest.raises(ValueError, match="`reduction` must be 'mean' or 'sum', got 'max'"):
        losses.scales(frames, latents, "max")


def test_hinge_and_adversarial_by_hand() -> None:
    real = [torch.tensor([2.0, 0.5, -1.0]), torch.tensor([[1.0]])]
    fake = [torch.tensor([-2.0, 0.0, 1.0]), torch.tensor([[0.5]])]
    # first: real (0 + 0.5 + 2) / 3, fake (0 + 1 + 2) / 3; second: real 0, fake 1.5
    expected = 0.5 * (2.5 / 3 + 3 / 3) + 0.5 * (0 + 1.5)
    assert float(losses.hinge_loss(real, fake)) == pytest.approx(expected)
    assert float(losses.adversarial_loss(fake)) == pytest.approx(1 / 3 - 0.5)


def test_logits_in_16_bits_are_added_up_in_float32(noise: Callable[..., torch.Tensor]) -> None:
    real, fake = noise(500).bfloat16(), noise(500, seed=1).bfloat16()
    wanted = 0.5 * ((1 - real.double()).relu().mean() + (1 + fake.double()).relu().mean())
    assert float(losses.hinge_loss([real], [fake])) == pytest.approx(float(wanted), rel=1e-5)
    assert float(losses.adversarial_loss([fake])) == pytest.approx(-float(fake.double().mean()), rel=1e-4)
    with pytest.raises(ValueError, match="zip"):
        losses.hinge_loss([real, real], [fake])


def test_adaptive_weight_by_hand() -> None:
    """output = w x: the gradients at w are sums of x that can be written down."""
    x, target = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0])
    w = torch.tensor([2.0], requires_grad=True)
    output = w * x  # 2, 4
    reconstruction = (output - target).square().sum()  # d/dw = 2 (2 * 1 + 1 * 2) = 8
    adversarial = -(3.0 * output).mean()  # d/dw = -3 * 1.5 = -4.5
    weight = losses.adaptive_weight(reconstruction, adversarial, w)
    assert float(weight) == pytest.approx(8 / (4.5 + 1e-4))
    assert not weight.requires_grad
    # both gradients can still be taken
    (reconstruction + weight * adversarial).backward()
    assert w.grad is not None
    assert float(w.grad) == pytest.approx(8 - 8 * 4.5 / (4.5 + 1e-4), abs=1e-4)


def test_adaptive_weight_is_limited_alike_among_sums_and_means() -> None:
    w = torch.tensor([1.0], requires_grad=True)
    flat = (1e-3 * w).sum()
    assert float(losses.adaptive_weight((1e6 * w).sum(), flat, w)) == 1e4
    # the same loss as a mean over 100 elements: a hundredth of the loss, a hundredth of the limit
    assert float(losses.adaptive_weight((1e4 * w).sum(), flat, w, scale=100)) == pytest.approx(100)
    # a discriminator without an opinion does not divide by zero
    assert math.isfinite(float(losses.adaptive_weight(w.sum(), (0 * w).sum(), w)))
