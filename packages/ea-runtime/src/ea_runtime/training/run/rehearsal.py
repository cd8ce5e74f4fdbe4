"""A step of a run on shapes alone: how much of it a reduced number format would compute wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ea_runtime.errors import UserError
from ea_runtime.machine.canary import Canary
from ea_runtime.machine.formats import Formats
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Recipe
from ea_runtime.training.run.dry_run import (
    NoValues,
    largest_batch,
    micro_batch,
    recipe_of_shapes,
    shapes_only,
)
from ea_runtime.training.update.precision import DTYPES


def share_wrong(
    recipe_class: Any,
    options: Any,
    train: TrainOptions,
    device: str,
    dtype: str,
    say: Callable[[str], None],
    canary: Canary | None,
) -> float:
    """The share of a run's products, 0..1, that `dtype` gets wrong on this device.

    One step of the largest batch of each phase is computed, forward and backward, on tensors without values; the canary
    tries each operation in it. say: gets a line for each wrong operation, with the modules' names.
    Raises what the recipe raises for wrong options.
    """
    with shapes_only():
        recipe = recipe_of_shapes(recipe_class, options, train, Path(), dtype)
    formats = Formats(torch.device(device), DTYPES[dtype], say, canary, assume=DTYPES[dtype])
    for phase in recipe.phases():
        _, members = largest_batch(phase, micro_batch(train, phase.batch_size or train.batch_size))
        _go_through(recipe, members, phase.start, formats)
    return formats.share_wrong


def _go_through(recipe: Recipe, members: list[int], step: int, formats: Formats) -> None:
    with NoValues():
        batch = recipe.fetch(members, 0, step)
    if not len(batch):
        return
    for turn in recipe.turns():
        try:
            with torch.random.fork_rng(devices=[]), NoValues(), formats.watch():
                loss = recipe.loss(batch, torch.Generator().manual_seed(0), step, turn)
                if loss.total.requires_grad:
                    loss.total.backward()
        except UserError:
            raise
        except Exception as error:  # a loss may be undefined without values: it is watched as it runs
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
            formats.say(f"number formats are checked as the run meets them, not ahead ({reason})")
