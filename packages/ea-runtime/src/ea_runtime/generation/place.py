"""The place of a denoising run between two network passes: all that the passes before leave to those after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ea_runtime.generation.denoise import NoisePredictor
from ea_runtime.generation.packing import attributes, set_attributes
from ea_runtime.generation.step_cache import StepCaching


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run of several videos is.

    start: the first video of those that are denoised together now. passes: network passes done for these. x: their
    latents (N, C, t, h, w). finished: latents of the videos before. made: what the windows before this one made of
    these videos, (N, C, n, h, w) each.
    """

    start: int
    passes: int
    x: Tensor
    finished: list[Tensor]
    made: list[Tensor] = field(default_factory=list)


def capture(
    place: Place,
    scheduler: Any,
    generators: Sequence[torch.Generator],
    predict: NoisePredictor,
    caching: StepCaching | None,
) -> dict[str, Any]:
    """A run's state; refers to its tensors, so it holds until the next pass."""
    current = list(predict.caches.items())
    made = [] if caching is None else caching.made
    earlier = [one for one in made if all(one is not cache for _, cache in current)]
    return {
        "start": place.start,
        "passes": place.passes,
        "x": place.x,
        "finished": place.finished,
        "made": place.made,
        "scheduler": attributes(scheduler),
        "generators": [one.get_state() for one in generators],
        "is_split": predict.is_split,
        "caches": [[*rows, attributes(cache)] for rows, cache in current],
        "passes_before": [[getattr(one, name, 0) for name in ("computed", "skipped")] for one in earlier],
    }


def put_back(
    state: dict[str, Any],
    scheduler: Any,
    generators: Sequence[torch.Generator],
    predict: NoisePredictor,
    caching: StepCaching | None,
) -> None:
    """The opposite of `capture`, on parts that are new."""
    set_attributes(scheduler, state["scheduler"])
    for generator, saved in zip(generators, state["generators"], strict=True):
        generator.set_state(saved)
    predict.is_split = state["is_split"]
    if caching is None:
        return
    caching.made += [SimpleNamespace(computed=c, skipped=s) for c, s in state["passes_before"]]
    for start, stop, values in state["caches"]:
        cache = caching.new(len(predict.timesteps))
        set_attributes(cache, values)
        predict.caches[(start, stop)] = cache


def place_of(state: dict[str, Any]) -> Place:
    """The place of a state."""
    return Place(state["start"], state["passes"], state["x"], state["finished"], state.get("made", []))
