"""DPM++: second-order multistep solver of the diffusion ODE in the data prediction, one network pass per step.

Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022 (arXiv
2211.01095), algorithm 2 (2M). EasyAnimate V2 calls it "DPM++"; its script's default.
"""

from __future__ import annotations

from typing import Any

from ea_runtime.records import SamplerRecord
from ea_runtime.samplers.schedule import make_scheduler


def build(**config: Any) -> Any:
    """A diffusers `DPMSolverMultistepScheduler` over the given schedule."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return make_scheduler(DPMSolverMultistepScheduler, config)


RECORD = SamplerRecord("dpm++", "second-order multistep, the default (Lu et al. 2022)", build)
