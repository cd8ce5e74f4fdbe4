"""The order of samples: a function of (seed, epoch) alone, so that a position is two numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ea_runtime.errors import UserError
from ea_runtime.training.data.dataset import bucket_name
from ea_runtime.training.recipe import Phase


class BatchOrder:
    """Batches of sample indices; each batch has one bucket, every sample comes once per epoch.

    A bucket's last batch of an epoch may be smaller than `batch_size`: nothing is dropped or repeated.

    buckets: one key per sample; None leaves a sample out. batch_size: 1 or more. seed: 0 or more.
    Raises UserError for no samples.
    """

    def __init__(self, buckets: Sequence[Hashable], batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self.seed = seed
        groups: dict[Hashable, list[int]] = {}
        for index, key in enumerate(buckets):
            if key is not None:
                groups.setdefault(key, []).append(index)
        if not groups:
            raise UserError("the data set is empty; nothing can be trained on it")
        self.num_samples = sum(len(members) for members in groups.values())
        self._groups = [np.array(members) for members in groups.values()]
        self.batches_per_epoch = sum(-(-len(members) // batch_size) for members in self._groups)
        self._epoch = -1
        self._batches: list[list[int]] = []

    def batch(self, number: int) -> list[int]:
        """The batch of that number, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.batches_per_epoch)
        if epoch != self._epoch:
            self._batches = self._shuffle(epoch)
            self._epoch = epoch
        return self._batches[place]

    def _shuffle(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch]))
        batches: list[list[int]] = []
        for members in self._groups:
            shuffled = rng.permutation(members)
            batches += [
                shuffled[start : start + self.batch_size].tolist()
                for start in range(0, len(shuffled), self.batch_size)
            ]
        return [batches[place] for place in rng.permutation(len(batches))]


class Draw(NamedTuple):
    """A step's samples. phase: its number. bucket: their common key."""

    phase: int
    bucket: Hashable
    indices: list[int]


class PhaseOrder:
    """The samples of every step of a run: one BatchOrder per phase, its batches counted from the phase's start.

    Raises UserError if the phases do not begin at step 0 and follow one another, or one has no samples.
    """

    def __init__(self, phases: Sequence[Phase], batch_size: int, seed: int) -> None:
        starts = [phase.start for phase in phases]
        if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise UserError(f"phases must start at step 0 and follow one another, got starts {starts}")
        self.phases = phases
        self.orders = [BatchOrder(phase.buckets, phase.batch_size or batch_size, seed) for phase in phases]
        #: samples per epoch, of the phase with the most
        self.num_samples = max(order.num_samples for order in self.orders)

    def lines(self) -> list[str]:
        """One line per phase with buckets that can never fill a batch: nothing is lost, but its steps are smaller."""
        lines = []
        for phase, order in zip(self.phases, self.orders, strict=True):
            counts = Counter(key for key in phase.buckets if key is not None)
            small = sorted((n, bucket_name(key)) for key, n in counts.items() if n < order.batch_size)
            if small:
                named = ", ".join(f"{name}: {count}" for count, name in small[:3])
                since = f"from step {phase.start}: " * (len(self.phases) > 1)
                lines.append(
                    f"{since}{len(small)} of {len(counts)} buckets can never fill a batch of {order.batch_size}, "
                    f"theirs are smaller ({named}{', ...' * (len(small) > 3)})"
                )
        return lines

    def draw(self, step: int) -> Draw:
        """The samples of a step, counted from 0."""
        number = max(n for n, phase in enumerate(self.phases) if phase.start <= step)
        phase = self.phases[number]
        indices = self.orders[number].batch(step - phase.start)
        return Draw(number, phase.buckets[indices[0]], indices)
