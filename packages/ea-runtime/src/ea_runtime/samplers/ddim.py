"""DDIM: the deterministic process with DDPM's marginals (eta 0).

Song et al., Denoising Diffusion Implicit Models, 2020 (arXiv 2010.02502), equation 12. As in EasyAnimate V2
the predicted clean latents are clipped to -1..1 unless the model's scheduler config says `clip_sample` false.
"""

from __future__ import annotations

from typing import Any

from ea_runtime.records import SamplerRecord
from ea_runtime.samplers.schedule import make_scheduler


def build(**config: Any) -> Any:
    """A diffusers `DDIMScheduler` over the given schedule."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return make_scheduler(DDIMScheduler, config)


RECORD = SamplerRecord("ddim", "deterministic implicit process (Song et al. 2020)", build)
