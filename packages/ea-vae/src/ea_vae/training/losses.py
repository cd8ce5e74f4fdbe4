"""The VAE's losses: pixel, KL and adversarial terms, and the weight that balances the last.

Shapes: frames (B, 3, T, H, W) in -1..1; latents (B, C, t, h, w); logits of any shape. Terms are means over
elements; `scales` turns them into EasyAnimate's sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: largest adaptive weight, and the term that keeps its denominator above zero: VQGAN's, for a loss that is a sum
ADAPTIVE_MOST = 1e4
ADAPTIVE_EPS = 1e-4


def pixel_loss(output: Tensor, frames: Tensor, l1: float, mse: float) -> tuple[Tensor, Tensor, Tensor]:
    """`l1` x mean |output - frames| + `mse` x mean (output - frames)^2 of each sample, and the two means.

    output, frames: (B, 3, T, H, W). Returns (weighted sum, mean absolute error, mean squared error), each (B,).
    """
    difference = (output - frames).flatten(1)
    absolute, square = difference.abs().mean(1), difference.square().mean(1)
    return l1 * absolute + mse * square, absolute, square


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(logvar)) from a standard normal, in nats, mean over the latents' elements."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def psnr(square: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error over frames in -1..1; NaN for NaN and infinity."""
    # peak to peak is 2
    return 10 * math.log10(4 / max(square, 1e-12)) if math.isfinite(square) else math.nan


def scales(frames: Tensor, latents: Tensor, reduction: str) -> tuple[float, float]:
    """Factors that turn the means of reconstruction and KL term into what `reduction` asks for.

    reduction: "mean" or "sum". EasyAnimate sums: the reconstruction (pixels and perceptual distance, which it
    adds to each element) over each frame, the KL term over each video, both averaged over the batch. A KL
    weight w among sums therefore is w x (latents of a video) / (elements of a frame) among means: 1 / 16 of w
    for 9 frames, whatever their size, and t / 48 of it for t latent frames of 4 channels.

    Raises ValueError for another `reduction`.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"`reduction` must be 'mean' or 'sum', got {reduction!r}")
    if reduction == "mean":
        return 1.0, 1.0
    return float(math.prod(frames.shape[i] for i in (1, 3, 4))), float(math.prod(latents.shape[1:]))


def adversarial_loss(fake: Sequence[Tensor]) -> Tensor:
    """The VAE's adversarial term: minus the mean logit of each discriminator, added up."""
    return torch.stack([-logits.float().mean() for logits in fake]).sum()


def hinge_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """The discriminators' loss: half of mean relu(1 - real) + mean relu(1 + fake) each, added up.

    real, fake: logits of each discriminator on frames of the set and on reconstructions (Lim and Ye, 2017,
    "Geometric GAN"; the half is VQGAN's).
    """
    parts = [
        0.5 * (F.relu(1.0 - one.float()).mean() + F.relu(1.0 + other.float()).mean())
        for one, other in zip(real, fake, strict=True)
    ]
    return torch.stack(parts).sum()


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, scale: float = 1.0
) -> Tensor:
    """|gradient of `reconstruction`| / |gradient of `adversarial`| at `last_layer`, a scalar without gradient.

    With it both terms pull alike at the decoder's last kernel (Esser et al., 2021, "Taming Transformers", eq. 7).
    scale: `reconstruction` is a sum divided by this (1: it is the sum itself); the upper limit of 10,000, meant
        for sums, is divided likewise, so that "mean" and "sum" differ in nothing but the size of the loss.
    """
    (wanted,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (pushed,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    ratio = wanted.norm() / (pushed.norm() + ADAPTIVE_EPS)
    return ratio.clamp(max=ADAPTIVE_MOST / scale).detach()
