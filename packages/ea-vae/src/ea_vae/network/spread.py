"""Chunks of one video over several processes: each process computes some of them, and all get all of them, in order.

Chunks are independent of each other, so the result is bit-exact with one process's.
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


@dataclass(frozen=True)
class Spread:
    """The processes of `group` (None: all). All of them must ask for the same jobs in the same order."""

    group: Any = None

    def run(self, jobs: Iterator[Job]) -> Iterator[Tensor]:
        """The result of each job; as many are taken at a time as there are processes, so memory grows with those."""
        size, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        while batch := list(islice(jobs, size)):
            own = batch[rank]() if rank < len(batch) else None
            yield from [self._share(own, owner) for owner in range(len(batch))]

    def _share(self, own: Tensor | None, owner: int) -> Tensor:
        """The result of process `owner`: its shape and number format first, then its numbers."""
        source = owner if self.group is None else dist.get_global_rank(self.group, owner)
        mine = own if dist.get_rank(self.group) == owner else None
        layout: list[Any] = [None if mine is None else (mine.shape, mine.dtype, mine.device.type)]
        dist.broadcast_object_list(layout, src=source, group=self.group)
        shape, dtype, kind = layout[0]
        device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
        shared = torch.empty(shape, dtype=dtype, device=device) if mine is None else mine.contiguous()
        dist.broadcast(shared, src=source, group=self.group)
        return shared
