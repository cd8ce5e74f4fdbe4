"""UniPC: second-order predictor and corrector in one network pass per step.

Zhao et al., UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models, 2023
(arXiv 2302.04867). Not in EasyAnimate V2.
"""

from __future__ import annotations

from typing import Any

from ea_runtime.records import SamplerRecord
from ea_runtime.samplers.schedule import make_scheduler


def build(**config: Any) -> Any:
    """A diffusers `UniPCMultistepScheduler` over the given schedule."""
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    return make_scheduler(UniPCMultistepScheduler, config)


RECORD = SamplerRecord("unipc", "predictor-corrector, good at few steps (Zhao et al. 2023)", build)
