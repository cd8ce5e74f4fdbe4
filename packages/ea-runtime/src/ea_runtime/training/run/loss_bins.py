"""Mean losses by timestep: a denoiser's loss differs by two orders of magnitude between little and much noise."""

from __future__ import annotations

from collections.abc import Sequence

#: of a recipe's timesteps, 0..999
NUM_TIMESTEPS = 1000
#: bins in the lines of a run's log
LOG_BINS = 5


def bin_of(timestep: float, bins: int) -> int:
    """The bin of a timestep, counted from 0."""
    return min(int(timestep), NUM_TIMESTEPS - 1) * bins // NUM_TIMESTEPS


def loss_by_bin(
    losses: Sequence[float], timesteps: Sequence[int], bins: int = LOG_BINS, prefix: str = "loss"
) -> dict[str, float]:
    """`prefix`_tN of each bin of timesteps that has a sample: its mean loss; N is the timestep that it starts at."""
    found: dict[int, list[float]] = {}
    for loss, timestep in zip(losses, timesteps, strict=True):
        found.setdefault(bin_of(timestep, bins), []).append(loss)
    return {
        f"{prefix}_t{number * NUM_TIMESTEPS // bins:03}": sum(one) / len(one)
        for number, one in sorted(found.items())
    }
