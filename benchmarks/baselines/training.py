"""A training step of the denoiser as in the reference's script, in plain eager PyTorch.

Every step encodes its clips with the VAE, nine frames at a time, and its captions with T5, padded to 120 tokens. The
loss is improved diffusion's: the bound from means and variances of the posterior, looked up in NumPy tables for each
term (Nichol and Dhariwal 2021, arXiv 2102.09672). Then backward, clipping, AdamW, the learning rate schedule, and an
average of the weights, one tensor at a time.

Shapes: frames uint8 (B, T, H, W, 3), latents (B, C, t, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOKENS = 120
CHUNK = 9
SCALE = 0.18215


class Diffusion:
    """Linear betas over 1,000 steps; a model that predicts noise and its variance."""

    def __init__(self) -> None:
        self.betas = np.linspace(1e-4, 0.02, 1000, dtype=np.float64)
        self.products = np.cumprod(1.0 - self.betas)
        before = np.append(1.0, self.products[:-1])
        self.variance = self.betas * (1.0 - before) / (1.0 - self.products)
        self.log_variance = np.log(np.append(self.variance[1], self.variance[1:]))
        self.from_start = self.betas * np.sqrt(before) / (1.0 - self.products)
        self.from_noisy = (1.0 - before) * np.sqrt(1.0 - self.betas) / (1.0 - self.products)

    def noisy(self, start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        signal, sigma = np.sqrt(self.products), np.sqrt(1.0 - self.products)
        return taken(signal, t, start) * start + taken(sigma, t, start) * noise

    def loss(self, output: Tensor, start: Tensor, noisy: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(B,): the error in the noise and the bound, which trains the variance alone."""
        predicted, spread = torch.split(output, start.shape[1], dim=1)
        frozen = predicted.detach()
        true_mean = taken(self.from_start, t, start) * start + taken(self.from_noisy, t, start) * noisy
        true_log = taken(self.log_variance, t, start)
        least, most = taken(self.log_variance, t, start), taken(np.log(self.betas), t, start)
        fraction = (spread + 1) / 2
        log_variance = fraction * most + (1 - fraction) * least
        guess = (
            taken(np.sqrt(1.0 / self.products), t, start) * noisy
            - taken(np.sqrt(1.0 / self.products - 1.0), t, start) * frozen
        )
        mean = taken(self.from_start, t, start) * guess + taken(self.from_noisy, t, start) * noisy
        kl = 0.5 * (
            -1.0
            + log_variance
            - true_log
            + torch.exp(true_log - log_variance)
            + ((true_mean - mean) ** 2) * torch.exp(-log_variance)
        )
        kl = kl.flatten(1).mean(1) / math.log(2.0)
        nll = -bin_log_likelihood(start, mean, 0.5 * log_variance).flatten(1).mean(1) / math.log(2.0)
        bound = torch.where(t == 0, nll, kl)
        return ((noise - predicted) ** 2).flatten(1).mean(1) + bound


def taken(table: np.ndarray, t: Tensor, like: Tensor) -> Tensor:
    values = torch.from_numpy(table).to(like.device)[t].float()
    while values.ndim < like.ndim:
        values = values[..., None]
    return values.expand(like.shape)


def bin_log_likelihood(x: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    def below(value: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (value + 0.044715 * value**3)))

    centred, inverse = x - mean, torch.exp(-log_sigma)
    upper, lower = below(inverse * (centred + 1.0 / 255.0)), below(inverse * (centred - 1.0 / 255.0))
    middle = torch.log((upper - lower).clamp(min=1e-12))
    first, last = torch.log(upper.clamp(min=1e-12)), torch.log((1.0 - lower).clamp(min=1e-12))
    return torch.where(x < -0.999, first, torch.where(x > 0.999, last, middle))


class Loop:
    """vae, text: frozen. transformer: trained. rate: AdamW's learning rate, after a warm-up."""

    def __init__(self, vae: Any, text: Any, transformer: Any, rate: float, seed: int = 0) -> None:
        self.vae, self.text, self.transformer = vae, text, transformer
        self.diffusion = Diffusion()
        self.parameters = [p for p in transformer.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=3e-2, eps=1e-10)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: min(1.0, (n + 1) / 100))
        self.averages = [p.detach().clone() for p in self.parameters]
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents drawn from the posterior, chunk by chunk."""
        pixels = frames.float() / 127.5 - 1.0
        pixels = pixels.permute(0, 4, 1, 2, 3)
        parts = []
        for start in range(0, pixels.shape[2], CHUNK):
            posterior = self.vae.encode(pixels[:, :, start : start + CHUNK].contiguous()).latent_dist
            parts.append(posterior.sample(generator=self.generator))
        return torch.cat(parts, dim=2) * SCALE

    @torch.no_grad()
    def features(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens = self.text.tokenizer(
            list(captions), max_length=TOKENS, padding="max_length", truncation=True, return_tensors="pt"
        )
        mask = tokens["attention_mask"]
        return self.text.model(tokens["input_ids"], attention_mask=mask)[0], mask

    def step(self, frames: Tensor, captions: Sequence[str]) -> float:
        """One optimiser step; its loss."""
        batch = len(captions)
        latents = self.encode(frames)
        dropped = torch.rand(batch, generator=self.generator) < 0.1
        text, mask = self.features(["" if drop else c for c, drop in zip(captions, dropped, strict=True)])
        noise = torch.randn(latents.shape, generator=self.generator)
        t = torch.randint(0, 1000, (batch,), generator=self.generator)
        noisy = self.diffusion.noisy(latents, t, noise)
        output = self.transformer(
            noisy, timestep=t, encoder_hidden_states=text, encoder_attention_mask=mask
        ).sample
        loss = self.diffusion.loss(output, latents, noisy, noise, t).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self._average()
        return float(loss.detach())

    @torch.no_grad()
    def _average(self) -> None:
        self.updates += 1
        decay = min(0.9999, (1 + self.updates) / (10 + self.updates))
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.sub_((1 - decay) * (average - parameter))
