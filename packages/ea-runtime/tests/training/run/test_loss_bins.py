"""Mean losses by timestep."""

from __future__ import annotations

import pytest

from ea_runtime.training.run.loss_bins import bin_of, loss_by_bin


@pytest.mark.parametrize(
    ("timestep", "bins", "number"),
    [
        (0, 5, 0),
        (199.9, 5, 0),
        (200, 5, 1),
        (999, 5, 4),
        (1000, 5, 4),
        (9000, 5, 4),
        (333, 3, 0),
        (334, 3, 1),
        (999, 1000, 999),
    ],
)
def test_a_timestep_belongs_to_one_bin(timestep: float, bins: int, number: int) -> None:
    assert bin_of(timestep, bins) == number


def test_each_bin_with_samples_has_their_mean() -> None:
    losses, timesteps = [5.0, 1.0, 4.0, 2.0], [999, 0, 250, 100]
    found = loss_by_bin(losses, timesteps)
    assert found == {"loss_t000": 1.5, "loss_t200": 4.0, "loss_t800": 5.0}
    assert list(found) == sorted(found)
    assert loss_by_bin(losses, timesteps, 3, "validation") == {
        "validation_t000": 7 / 3,
        "validation_t666": 5.0,
    }
    assert loss_by_bin([], []) == {}
    with pytest.raises(ValueError, match="zip"):
        loss_by_bin([1.0], [])
