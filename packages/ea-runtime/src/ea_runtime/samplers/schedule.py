"""The noise schedule that all samplers share, and how a scheduler is made from it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

#: EasyAnimate V2: linear betas over 1,000 steps; `steps_offset` shifts the samplers that space their steps
#: from 0.
V2_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "steps_offset": 1,
}

# The schedule that a model was trained with. Placing and solving steps is up to the sampler: a folder's
# scheduler file describes one sampler and would bend the others (V2's script ignores it altogether).
_OF_THE_MODEL = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "clip_sample",
    "clip_sample_range",
)


def schedule_of_model(scheduler_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The part of a folder's scheduler_config.json that holds for every sampler, over V2's schedule."""
    given = scheduler_config or {}
    return V2_SCHEDULE | {key: given[key] for key in _OF_THE_MODEL if given.get(key) is not None}


def make_scheduler(scheduler_class: type, config: Mapping[str, Any], **fixed: Any) -> Any:
    """A diffusers scheduler with V2's schedule, then `config`, then `fixed`.

    Keys that this scheduler does not take are left out: one config serves all samplers.
    """
    known = inspect.signature(scheduler_class.__init__).parameters
    values = V2_SCHEDULE | dict(config) | fixed
    return scheduler_class(**{key: value for key, value in values.items() if key in known})
