"""The order of samples: a function of (seed, epoch) alone, so that a position is two numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


class BatchOrder:
    """Batches of sample indices; each batch holds one bucket, every sample comes once an epoch.

    A bucket's last batch of an epoch may be smaller than `batch_size`: nothing is dropped or doubled.

    buckets: one key a sample. batch_size: 1 or more. seed: 0 or more. Raises ValueError for no samples.
    """

    def __init__(self, buckets: Sequence[Hashable], batch_size: int, seed: int) -> None:
        if not buckets:
            raise ValueError("the data set is empty; nothing can be trained on it")
        self.batch_size = batch_size
        self.seed = seed
        groups: dict[Hashable, list[int]] = {}
        for index, key in enumerate(buckets):
            groups.setdefault(key, []).append(index)
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
