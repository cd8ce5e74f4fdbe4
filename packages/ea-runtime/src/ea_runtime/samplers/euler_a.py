"""Euler ancestral: an Euler step that goes further down than asked, then adds fresh noise.

After K. Crowson's k-diffusion (sample_euler_ancestral); the noise's variance is that of DDPM's posterior, Ho
et al., Denoising Diffusion Probabilistic Models, 2020 (arXiv 2006.11239). EasyAnimate V2 calls it "Euler A".
"""

from __future__ import annotations

from typing import Any

from ea_runtime.records import SamplerRecord
from ea_runtime.samplers.schedule import make_scheduler


def build(**config: Any) -> Any:
    """A diffusers `EulerAncestralDiscreteScheduler` over the given schedule."""
    from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler

    return make_scheduler(EulerAncestralDiscreteScheduler, config)


RECORD = SamplerRecord("euler-a", "Euler with fresh noise at every step (k-diffusion)", build)
