"""PNDM: three Runge-Kutta steps of four passes each, then fourth-order linear multistep.

Liu et al., Pseudo Numerical Methods for Diffusion Models on Manifolds, 2022 (arXiv 2202.09778), F-PNDM. It
needs more network passes than steps: 9 more. EasyAnimate V2 calls it "PNDM".
"""

from __future__ import annotations

from typing import Any

from ea_runtime.records import SamplerRecord
from ea_runtime.samplers.schedule import make_scheduler


def build(**config: Any) -> Any:
    """A diffusers `PNDMScheduler` over the given schedule."""
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler

    return make_scheduler(PNDMScheduler, config)


RECORD = SamplerRecord("pndm", "Runge-Kutta warm-up, then fourth-order multistep (Liu et al. 2022)", build)
