"""The clean latents that a step of denoising leads to, for previews; the run itself does not use them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ea_runtime.errors import UserError


def predicted_clean(scheduler: Any, x: Tensor, timestep: Tensor, predicted: Tensor) -> Tensor:
    """Latents without noise, as the network sees them at this step.

    x: what the network was given, (N, C, t, h, w), after `scale_model_input`: sqrt(a) clean + sqrt(1 - a) noise with
    a of `alphas_cumprod`. predicted: noise, velocity or clean latents, after `prediction_type`, (N, C, t, h, w).

    Returns (N, C, t, h, w), float32. Ho et al. 2020 (arXiv 2006.11239), equation 15; for velocities Salimans and Ho
    2022 (arXiv 2202.00512), appendix D. Raises UserError for a scheduler that does not say how noisy its steps are.
    """
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise UserError(
            f"`on_preview` needs a sampler with alphas_cumprod, and {type(scheduler).__name__} has none; leave it out"
        )
    a = _alpha(alphas, float(timestep)).to(x.device)
    x, predicted = x.float(), predicted.float()
    kind = getattr(scheduler.config, "prediction_type", "epsilon")
    if kind == "sample":
        return predicted
    if kind == "v_prediction":
        return a.sqrt() * x - (1 - a).sqrt() * predicted
    return (x - (1 - a).sqrt() * predicted) / a.sqrt()


def _alpha(alphas: Tensor, timestep: float) -> Tensor:
    """alphas_cumprod at a timestep; between two, from the linear mean of their sigmas, as Euler's schedulers do."""
    low = min(max(int(timestep), 0), len(alphas) - 1)
    high = min(low + 1, len(alphas) - 1)
    near = alphas[[low, high]].double().clamp(min=1e-12)
    sigmas = ((1 - near) / near).sqrt()
    sigma = torch.lerp(sigmas[0], sigmas[1], min(max(timestep - low, 0.0), 1.0))
    return (1 / (sigma**2 + 1)).float()
