"""Euler: one first-order step along the probability flow for each network pass.

Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022 (arXiv 2206.00364),
algorithm 2 without churn, over the steps' own sigmas. EasyAnimate V2 calls it "Euler".
"""

from __future__ import annotations

from typing import Any

from ea_runtime.records import SamplerRecord
from ea_runtime.samplers.schedule import make_scheduler


def build(**config: Any) -> Any:
    """A diffusers `EulerDiscreteScheduler` over the given schedule."""
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    return make_scheduler(EulerDiscreteScheduler, config)


RECORD = SamplerRecord("euler", "first-order steps, deterministic (Karras et al. 2022)", build)
