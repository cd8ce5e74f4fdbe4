"""The training loss: noise prediction plus a variational bound that trains the variance alone.

With x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e (a_t: cumulative product of 1 - beta, linear betas 1e-4 .. 0.02
over 1,000 steps; Ho et al. 2020, arXiv 2006.11239), the model outputs for each element a noise e' and a
number v, about -1 .. 1, and
    mse   is the mean of (e' - e)^2
    vb    is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in bits per dimension, and at t = 0 the negative
          log-likelihood of x_0 in bins 2/255 wide. v places the variance of p between beta~_t (-1) and beta_t
          (1), in the logarithm (Nichol and Dhariwal 2021, arXiv 2102.09672). The mean of p is held fixed: the
          gradient of vb goes to v only.

Both means of the KL are linear in x_t, so their difference is a number times (e' - e), whatever x_0 is:
neither x_t nor a prediction of x_0 is formed, which is cheaper and loses no digits at t near 999. With
    u = (v + 1) / 2 * log(beta_t / beta~_t)    and    k_t = beta_t^2 / ((1 - beta_t) (1 - a_t) beta~_t)
the KL is (u - 1 + exp(-u) (1 + k_t (e' - e)^2)) / 2.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02
SNR_TIMESTEP = 249  # `snr`: up to this step the loss compares x_0, above it noise
_BIN = 1.0 / 255.0  # half the width of a grey level in -1 .. 1


class Schedule(NamedTuple):
    """Numbers of each timestep, (1000,) each."""

    signal: Tensor  # sqrt(a_t)
    sigma: Tensor  # sqrt(1 - a_t)
    noise_to_start: Tensor  # sqrt(1 / a_t - 1): an error of 1 in the noise is this error in x_0
    log_min: Tensor  # log beta~_t, the posterior's variance; at t = 0, where that is 0, the value of t = 1
    log_range: Tensor  # log(beta_t / beta~_t)
    error_to_kl: Tensor  # k_t above


@lru_cache(maxsize=16)
def _tables(device: torch.device, dtype: torch.dtype) -> Schedule:
    # Computed in float64 on the CPU once per device and dtype, then only indexed.
    betas = torch.linspace(BETA_START, BETA_END, NUM_TIMESTEPS, dtype=torch.float64)
    alphas = torch.cumprod(1.0 - betas, dim=0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    posterior = betas * (1.0 - previous) / (1.0 - alphas)
    posterior[0] = posterior[1]
    tables = Schedule(
        signal=alphas.sqrt(),
        sigma=(1.0 - alphas).sqrt(),
        noise_to_start=(1.0 / alphas - 1.0).sqrt(),
        log_min=posterior.log(),
        log_range=betas.log() - posterior.log(),
        error_to_kl=betas**2 / ((1.0 - betas) * (1.0 - alphas) * posterior),
    )
    return Schedule(*(table.to(device=device, dtype=dtype) for table in tables))


def schedule(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Schedule:
    """The noise schedule's tables on a device, cached: index them with timesteps (B,) of 0 .. 999."""
    return _tables(torch.device(device), dtype)


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 where an argument is: the bound loses too much in half precision."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _per_sample(table: Tensor, timesteps: Tensor, ndim: int) -> Tensor:
    return table[timesteps].reshape(-1, *[1] * (ndim - 1))  # (B, 1, ..., 1)


def _check(x_start: Tensor, noise: Tensor, timesteps: Tensor) -> None:
    batch = x_start.shape[0]
    if noise.shape != x_start.shape:
        raise ValueError(
            f"`noise` must have the shape of `x_start` {tuple(x_start.shape)}, got {tuple(noise.shape)}"
        )
    if timesteps.shape != (batch,) or timesteps.is_floating_point():
        raise ValueError(
            f"`timesteps` must be integers of shape ({batch},), got {timesteps.dtype} of shape"
            f" {tuple(timesteps.shape)}; draw them with torch.randint(0, {NUM_TIMESTEPS}, ({batch},))"
        )


def add_noise(x_start: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e.

    Args:
        x_start: clean latents (B, C, T, H, W).
        noise: unit Gaussian noise of the same shape.
        timesteps: (B,) integers, 0 (nearly clean) .. 999 (noise).

    Raises:
        ValueError: if the shapes differ, in one line.
    """
    _check(x_start, noise, timesteps)
    table = schedule(x_start.device, _compute_dtype(x_start))
    signal = _per_sample(table.signal, timesteps, x_start.ndim)
    sigma = _per_sample(table.sigma, timesteps, x_start.ndim)
    return (signal * x_start + sigma * noise).to(x_start.dtype)


def training_loss(
    model_output: Tensor, x_start: Tensor, noise: Tensor, timesteps: Tensor, snr: bool = False
) -> dict[str, Tensor]:
    """The loss of each sample; average them for the batch.

    Args:
        model_output: (B, 2C, T, H, W), noise then variance, for `add_noise(x_start, noise, timesteps)`.
        x_start: clean latents (B, C, T, H, W).
        noise: the noise that was added, same shape.
        timesteps: (B,) integers 0 .. 999.
        snr: compare x_0 in place of noise up to step 249, which weights those steps by (1 - a_t) / a_t.

    Returns:
        {"loss": mse + vb, "mse", "vb"}, (B,) each, float32 (float64 for float64 input).

    Raises:
        ValueError: if shapes do not fit, in one line.
    """
    batch, channels = x_start.shape[:2]
    expected = (batch, 2 * channels, *x_start.shape[2:])
    if model_output.shape != expected:
        raise ValueError(
            f"`model_output` must have shape {expected} (noise, variance), got {tuple(model_output.shape)};"
            " use a model with out_channels = 2 x in_channels"
        )
    _check(x_start, noise, timesteps)

    dtype = _compute_dtype(model_output, x_start)
    table = schedule(x_start.device, dtype)
    log_range, log_min, error_to_kl, to_start = (
        _per_sample(numbers, timesteps, x_start.ndim)
        for numbers in (table.log_range, table.log_min, table.error_to_kl, table.noise_to_start)
    )
    predicted, variance = model_output.to(dtype).chunk(2, dim=1)  # (B, C, T, H, W) each
    error = predicted - noise.to(dtype)
    squared = error.square()

    mse = squared.flatten(1).mean(1)  # (B,)
    if snr:
        mse = torch.where(timesteps > SNR_TIMESTEP, mse, mse * table.noise_to_start[timesteps].square())

    fraction = (variance + 1) / 2
    log_ratio = fraction * log_range  # u: log of p's variance over beta~
    ratio = torch.exp(-log_ratio)
    kl = torch.addcmul(ratio, ratio * error_to_kl, squared.detach())
    kl = 0.5 * (kl + log_ratio - 1)

    # At t = 0 the mean of p is its prediction of x_0.
    log_sigma = 0.5 * (log_ratio + log_min)
    nll = _bin_nll(x_start.to(dtype), error.detach() * to_start, log_sigma)
    bits = torch.where(timesteps == 0, nll.flatten(1).mean(1), kl.flatten(1).mean(1)) / math.log(2.0)  # (B,)
    return {"loss": mse + bits, "mse": mse, "vb": bits}


def min_snr_weights(timesteps: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / SNR for each of timesteps (B,) -> (B,): weights of the noise error; gamma 0: ones.

    Source: Hang et al. 2023, arXiv 2303.09556, for noise prediction.
    """
    if gamma == 0:
        return torch.ones(len(timesteps), device=timesteps.device)
    tables = schedule(timesteps.device)
    snr = (tables.signal[timesteps] / tables.sigma[timesteps]).square()
    return snr.clamp(max=gamma) / snr


def _normal_cdf(x: Tensor) -> Tensor:
    # The tanh approximation, as in the published training code.
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _bin_nll(x_start: Tensor, distance: Tensor, log_sigma: Tensor) -> Tensor:
    """-log probability of the bin of width 2/255 around x_start, in nats, of a Gaussian `distance` below it.

    The outermost bins (beyond +-0.999) reach to infinity.
    """
    inverse = torch.exp(-log_sigma)
    above = _normal_cdf(inverse * (distance + _BIN))
    below = _normal_cdf(inverse * (distance - _BIN))
    probability = torch.where(
        x_start < -0.999, above, torch.where(x_start > 0.999, 1.0 - below, above - below)
    )
    return -probability.clamp(min=1e-12).log()
