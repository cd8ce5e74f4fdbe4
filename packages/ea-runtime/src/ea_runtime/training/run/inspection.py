"""A look at a run every so many steps: the loss of held-out samples, and samples that are drawn and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from ea_runtime.machine.formats import Formats
from ea_runtime.machine.processes import wait_for_all
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Recipe, Samples
from ea_runtime.training.run.history import JUDGED
from ea_runtime.training.run.step import seed_global
from ea_runtime.training.run.validation import Validator
from ea_runtime.training.update.average import WeightAverage
from ea_runtime.training.update.parallel import Strategy

#: Figures of drawn samples, by name.
SampleJudge = Callable[[Samples], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Look:
    """Findings of one step. figures: for its line in the log. sheet: uint8 (H, W, 3) for `samples/`."""

    figures: dict[str, float] = field(default_factory=dict)
    sheet: np.ndarray | None = None


@dataclass(frozen=True)
class Inspector:
    """Looks at a run with the averaged weights. Weights, modes and draws of the run are afterwards as before.

    validator: None without [train.validation]. judge: None if drawn samples are shown only. Only the first process
    reports what it finds; the others take part if the weights are sharded.
    """

    recipe: Recipe
    options: TrainOptions
    parallel: Strategy
    averages: Mapping[str, WeightAverage]
    formats: Formats
    validator: Validator | None
    judge: SampleJudge | None

    def look(self, step: int) -> Look:
        """Findings that are due after `step`, counted from 1. To be called by all processes."""
        every, found = self.options.sample_every, Look()
        if self.validator is not None and self.validator.is_due(step):
            found.figures.update(self._validate(self.validator, step))
        if every and step % every == 0:
            drawn = self._draw(step)
            found = Look(found.figures | drawn.figures, drawn.sheet)
        return found

    @property
    def _takes_part(self) -> bool:
        return self.parallel.rank == 0 or self.parallel.is_sharded

    def _validate(self, validator: Validator, step: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        if self._takes_part:
            with self._averaged():
                figures = validator.measure(step - 1)
        wait_for_all()
        return figures

    def _draw(self, step: int) -> Look:
        found = Look()
        if self._takes_part:
            with self._averaged(), torch.no_grad():
                seed_global(self.options.seed)
                drawn = self.parallel.run(lambda: self.recipe.sample_sheet(step))
            if self.parallel.rank == 0:
                found = self._judged(drawn)
        wait_for_all()
        return found

    def _judged(self, drawn: Samples | np.ndarray | None) -> Look:
        if not isinstance(drawn, Samples):
            return Look(sheet=drawn)
        figures = {} if self.judge is None else self.judge(drawn)
        return Look({f"{JUDGED}{name}": value for name, value in figures.items()}, drawn.sheet)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        with ExitStack() as stack:
            for average in self.averages.values():
                stack.enter_context(average.swapped_in())
            stack.enter_context(self.formats.watch())
            yield
