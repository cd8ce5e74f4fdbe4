"""A sampler of your own: second-order Adams-Bashforth over the probability flow, one network pass per step.

    ea --plugin examples/own_sampler.py generate "a red circle moves right" --sampler ab2

With noise level s, latents x = x0 + s * noise move along dx/ds = noise. Euler takes the noise of this step;
Adams-Bashforth of order two extrapolates from this one and the last (Liu et al. 2022, arXiv 2202.09778):

    x_next = x + (s_next - s) * ((1 + r / 2) * noise - (r / 2) * noise_before),  r = (s_next - s) / (s - s_before)
"""

from __future__ import annotations

from typing import Any

from ea_runtime import hookimpl
from ea_runtime.records import SamplerRecord


def build(**schedule: Any) -> Any:
    """A scheduler over the model's own schedule. torch and diffusers are imported here, when it is wanted."""
    import torch
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    from ea_runtime.samplers.schedule import make_scheduler

    class AdamsBashforth(EulerDiscreteScheduler):
        """Euler's sigmas, time steps and scaling of inputs; only the step differs."""

        noise_before: torch.Tensor | None = None

        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self.noise_before = None

        def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:  # type: ignore
            if self.step_index is None:
                self._init_step_index(timestep)
            now = self.step_index
            s, s_next = self.sigmas[now], self.sigmas[now + 1]
            noise = model_output
            if self.noise_before is not None:
                half = (s_next - s) / (s - self.sigmas[now - 1]) / 2
                noise = (1 + half) * model_output - half * self.noise_before
            self.noise_before = model_output
            self._step_index = now + 1
            return (sample + (s_next - s) * noise,)

    return make_scheduler(AdamsBashforth, schedule)


@hookimpl
def ea_samplers() -> list[SamplerRecord]:
    return [SamplerRecord("ab2", "second order, one network pass per step (Liu et al. 2022)", build)]
