"""Chunks of one video over several processes: each codes some of them, all get all of them, in order.

Chunks are independent of each other, so what comes out is equal to one process's to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Job = Callable[[], Tensor]


def run_here(jobs: Iterator[Job]) -> Iterator[Tensor]:
    """What each job gives, one after the other."""
    for job in jobs:
        yield job()


@dataclass(frozen=True)
class Spread:
    """The processes of `group` (None: all). All of them must ask for the same jobs in the same order."""

    group: Any = None

    def run(self, jobs: Iterator[Job]) -> Iterator[Tensor]:
        """What each job gives; as many are taken at a time as there are processes, so memory grows with those."""
        size, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        while batch := list(islice(jobs, size)):
            own = batch[rank]() if rank < len(batch) else None
            yield from [self._share(own, owner) for owner in range(len(batch))]

    def _share(self, own: Tensor | None, owner: int) -> Tensor:
        """The result of process `owner`: its shape and number format first, then its numbers."""
        source = owner if self.group is None else dist.get_global_rank(self.group, owner)
        is_mine = dist.get_rank(self.group) == owner
        said = [(tuple(own.shape), own.dtype, own.device.type) if is_mine and own is not None else None]
        dist.broadcast_object_list(said, src=source, group=self.group)
        assert said[0] is not None
        shape, dtype, kind = said[0]
        device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
        shared = (
            own.contiguous()
            if is_mine and own is not None
            else torch.empty(shape, dtype=dtype, device=device)
        )
        dist.broadcast(shared, src=source, group=self.group)
        return shared
