"""The encoder's Gaussian over latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None
"""Source of noise: one generator for the batch, a list with one for each video, or torch's own."""


class Posterior:
    """Diagonal Gaussian over latents (B, C, t, h, w), from moments (B, 2 C, t, h, w): mean, log-variance.

    The names are those of diffusers' DiagonalGaussianDistribution, without importing its module, which loads every
    autoencoder that diffusers has; `logvar` is held within -30..20. Its `kl` sums three axes, one too few for video.
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)
        self.var = torch.exp(self.logvar)

    def mode(self) -> Tensor:
        """The likeliest latents: the mean."""
        return self.mean

    def sample(self, generator: Generators = None) -> Tensor:
        """Latents (B, C, t, h, w) with noise from `generator`."""
        noise = randn_tensor(
            tuple(self.mean.shape), generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + self.std * noise

    def kl(self, other: Posterior | None = None) -> Tensor:
        """KL divergence from `other` (a standard normal by default), in nats, summed per video: (B,)."""
        mean, logvar = (0.0, torch.zeros_like(self.logvar)) if other is None else (other.mean, other.logvar)
        each = (self.mean - mean).square() / logvar.exp() + self.var / logvar.exp() - 1 + logvar - self.logvar
        return 0.5 * each.flatten(1).sum(dim=1)


class NoiseStream:
    """Draws latents from moments piece by piece, with the noise that EasyAnimate would draw.

    MagViT mode draws for each chunk, slice mode once for all latent frames, which puts the numbers in
    another order. The latter's noise is held whole; it has 1/192 of the frames' size.

    Args:
        generator: source of the noise.
        num_whole: number of latent frames to draw at once; None draws piece by piece.
        before: latent frames of each piece that comes before the first one sampled: their noise is drawn and dropped.
    """

    def __init__(self, generator: Generators, num_whole: int | None, before: Sequence[int] = ()) -> None:
        self.generator = generator
        self.num_whole = num_whole
        self.whole: Tensor | None = None
        self.before = list(before)
        self.num_drawn = sum(before)

    def sample(self, moments: Tensor) -> Tensor:
        """Latents (B, C, n, h, w) from the moments (B, 2 C, n, h, w) of the next n latent frames."""
        posterior = Posterior(moments)
        if self.num_whole is None:
            while self.before:
                self._draw(posterior.mean, self.before.pop(0))
            noise = self._draw(posterior.mean, moments.shape[2])
        else:
            if self.whole is None:
                self.whole = self._draw(posterior.mean, self.num_whole)
            noise = self.whole[:, :, self.num_drawn : self.num_drawn + moments.shape[2]]
        self.num_drawn += moments.shape[2]
        return posterior.mean + posterior.std * noise

    def _draw(self, mean: Tensor, num_latents: int) -> Tensor:
        shape = (*mean.shape[:2], num_latents, *mean.shape[3:])
        return randn_tensor(shape, generator=self.generator, device=mean.device, dtype=mean.dtype)
