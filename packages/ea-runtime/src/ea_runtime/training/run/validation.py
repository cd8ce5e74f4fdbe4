"""Validation during a run: the loss of held-out samples, on draws that are the same each time.

Held-out samples are never trained on. Their crops, noise and timesteps come from fixed seeds, so the figures of two
steps differ by the weights alone; they are those of the averaged weights, which the run saves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ea_runtime.errors import UserError
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Loss, Phase, Recipe
from ea_runtime.training.run.loss_bins import loss_by_bin
from ea_runtime.training.run.step import seed_global, seed_of

#: distinguishes these draws from those of steps
_SALT = 0x7A11D


def split_phases(phases: Sequence[Phase], options: TrainOptions) -> tuple[list[Phase], list[int]]:
    """The phases without the held-out samples, and those samples; nothing is held out without [train.validation].

    Which ones are held out depends on the seed and on their number alone. Raises UserError where no half of the samples
    would be left to train on.
    """
    table = options.validation
    if table is None:
        return list(phases), []
    usable = [
        i for i in range(len(phases[0].buckets)) if any(phase.buckets[i] is not None for phase in phases)
    ]
    if 2 * table.samples > len(usable):
        raise UserError(
            f"`train.validation.samples` must be half of the set's {len(usable)} usable samples or fewer, as they are "
            f"not trained on, got {table.samples}"
        )
    held = set(sorted(usable, key=lambda i: seed_of(options.seed, _SALT, i))[: table.samples])
    kept = [
        replace(phase, buckets=[None if i in held else key for i, key in enumerate(phase.buckets)])
        for phase in phases
    ]
    return kept, sorted(held)


class Validator:
    """Measures held-out samples. phases: the recipe's own, with all samples. run: what runs a pass of the networks."""

    def __init__(
        self,
        recipe: Recipe,
        options: TrainOptions,
        phases: Sequence[Phase],
        held: Sequence[int],
        run: Callable[[Callable[[], Any]], Any],
    ) -> None:
        assert options.validation is not None
        self.recipe, self.options, self.table = recipe, options, options.validation
        self.phases, self.held, self.run = phases, held, run

    def is_due(self, step: int) -> bool:
        """True after a step, counted from 1, that is to be validated."""
        return step % self.table.every == 0 or step == self.options.steps

    def measure(self, step: int) -> dict[str, float]:
        """Figures for the log: `val_loss`, and `val_loss_tN` of the bin of timesteps that starts at N.

        step: that was done last, counted from 0. Weights, buffers and modes are afterwards as before; each step seeds
        torch's global generator anew.
        """
        losses: list[float] = []
        timesteps: list[int] = []
        total, count = 0.0, 0
        turn = self.recipe.turns()[0]
        # a recipe of several turns weighs its terms by their gradients
        with _measuring(self.recipe.modules().values()), torch.set_grad_enabled(len(self.recipe.turns()) > 1):
            for number in range(self.table.draws):
                for indices in self._batches(step):
                    seed = seed_of(self.options.seed, _SALT, number)
                    batch = self.recipe.fetch(indices, seed, step)
                    if not len(batch):
                        continue
                    seed_global(seed)
                    generator = torch.Generator().manual_seed(seed)
                    found: Loss = self.run(lambda b=batch, g=generator: self.recipe.loss(b, g, step, turn))
                    total, count = total + float(found.total.detach()) * len(batch), count + len(batch)
                    if found.samples is not None and found.timesteps is not None:
                        losses += found.samples.cpu().tolist()
                        timesteps += found.timesteps.cpu().tolist()
        figures = {"val_loss": total / count} if count else {}
        return figures | loss_by_bin(losses, timesteps, self.table.bins, "val_loss")

    def _batches(self, step: int) -> Iterator[list[int]]:
        """The held-out samples of a step's phase, in batches of one bucket each."""
        phase = max((phase for phase in self.phases if phase.start <= step), key=lambda phase: phase.start)
        groups: dict[Hashable, list[int]] = {}
        for index in self.held:
            if phase.buckets[index] is not None:
                groups.setdefault(phase.buckets[index], []).append(index)
        size = -(-(phase.batch_size or self.options.batch_size) // self.options.accumulate)
        for members in groups.values():
            yield from (members[at : at + size] for at in range(0, len(members), size))


@contextmanager
def _measuring(modules: Any) -> Iterator[None]:
    """Within the block nothing is dropped out; modes and buffers are then as before."""
    modules = list(modules)
    modes: list[tuple[nn.Module, bool]] = [(part, part.training) for one in modules for part in one.modules()]
    buffers = [(buffer, buffer.clone()) for one in modules for buffer in one.buffers()]
    try:
        for one in modules:
            one.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
