"""The schedule that samplers share: V2's numbers, what a folder may change, and what reaches a scheduler."""

from __future__ import annotations

from typing import Any

import pytest

from ea_runtime.samplers.schedule import V2_SCHEDULE, make_scheduler, schedule_of_model

#: EasyAnimate V2's, as its scripts have it
PUBLISHED = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "steps_offset": 1,
}
OF_A_MODEL: dict[str, Any] = {
    "num_train_timesteps": 10,
    "beta_start": 0.5,
    "beta_end": 0.75,
    "beta_schedule": "scaled_linear",
    "trained_betas": [0.5],
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
    "clip_sample_range": 2.0,
}


def test_the_published_schedule() -> None:
    assert V2_SCHEDULE == PUBLISHED
    assert schedule_of_model(None) == schedule_of_model({}) == PUBLISHED


@pytest.mark.parametrize("key", OF_A_MODEL)
def test_a_folder_s_scheduler_says_how_the_model_was_trained(key: str) -> None:
    assert schedule_of_model({key: OF_A_MODEL[key]}) == PUBLISHED | {key: OF_A_MODEL[key]}
    assert schedule_of_model({key: None}) == PUBLISHED


def test_a_folder_s_scheduler_does_not_say_how_to_solve() -> None:
    of_a_sampler = {"steps_offset": 0, "solver_order": 3, "timestep_spacing": "trailing", "_class_name": "X"}
    assert schedule_of_model(OF_A_MODEL | of_a_sampler) == PUBLISHED | OF_A_MODEL


class Scheduler:
    def __init__(
        self, beta_start: float = 0.0, beta_end: float = 0.0, order: int = 1, final: str = ""
    ) -> None:
        self.values = (beta_start, beta_end, order, final)


def test_a_scheduler_takes_what_it_knows_and_fixed_values_win() -> None:
    assert make_scheduler(Scheduler, {}).values == (0.0001, 0.02, 1, "")
    given = {"beta_end": 0.5, "order": 2, "unknown": 3}
    assert make_scheduler(Scheduler, given).values == (0.0001, 0.5, 2, "")
    assert make_scheduler(Scheduler, given, order=3, final="zero").values == (0.0001, 0.5, 3, "zero")
    assert given == {"beta_end": 0.5, "order": 2, "unknown": 3}
