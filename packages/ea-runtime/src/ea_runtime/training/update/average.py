"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ea_runtime.training.update.sharded import fill


class WeightAverage:
    """average <- average + (1 - decay_n) * (weight - average), decay_n = min(decay, (1 + n) / (10 + n)).

    The ramp keeps the random first weights from staying in the average. Buffers are not averaged.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.updates = 0
        self.averages = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self) -> None:
        """Adds the module's present weights to the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [p.detach() for p in self.module.parameters() if p.requires_grad]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block the module has the averages; afterwards its own weights again, bit-exact."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.module.named_parameters():
            if name in self.averages:
                average = self.averages[name]
                kept = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(kept)

    @torch.no_grad()
    def install(self) -> None:
        """Puts the averages into the module for good."""
        for name, parameter in self.module.named_parameters():
            if name in self.averages:
                parameter.copy_(self.averages[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages and the number of updates, as tensors."""
        return {**self.averages, "_updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores a `state_dict`. Raises KeyError if a name is missing."""
        for name, average in self.averages.items():
            fill(average, state[name])
        self.updates = int(state["_updates"])
