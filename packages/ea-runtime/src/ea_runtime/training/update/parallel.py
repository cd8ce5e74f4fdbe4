"""Strategies for sharing the gradients of several processes: none for one, DDP (accelerate), shards (FSDP)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.machine.processes import from_first, gather, world
from ea_runtime.training.recipe import Batch, Loss
from ea_runtime.training.update.optimizers import TurnOptimizer
from ea_runtime.training.update.sharded import ShardedModules, whole_weights


class Strategy:
    """A way to share a step's gradients. This one, the base of the others, is for one process: nothing is exchanged."""

    #: True if the modules hold shards, so that using and saving them takes every process.
    is_sharded = False

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.rank, self.size = world()

    def prepare(self, turns: Sequence[TurnOptimizer]) -> None:
        """Called once the turns' optimisers exist."""

    def run(self, work: Callable[[], Any]) -> Any:
        """`work()`, which uses the modules."""
        return work()

    def backward(self, total: Tensor, turn: str, *, is_last: bool) -> None:
        """Adds the gradients of `total`; after the last one of a turn they are the same in every process."""
        total.backward()

    def pad(self, batches: list[Batch], counts: list[int]) -> list[Batch]:
        """This process's parts of a step, padded with parts of weight 0 so that it keeps in step.

        counts: of every process's parts; one is above 0. Called by all of them.
        """
        return batches

    def share_buffers(self) -> None:
        """Gives all processes the first one's buffers that a step changed."""

    def whole(self) -> AbstractContextManager[None]:
        """Within the block the modules have whole weights, to be saved."""
        return whole_weights(self.modules.values() if self.is_sharded else ())


class _Shared(Strategy):
    """Several processes: they start from the first one's weights and keep its buffers."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__(modules)
        with torch.no_grad():
            for module in modules.values():
                for tensor in module.state_dict().values():
                    _broadcast(tensor)
        # persistent ones only: computed tables do not change
        names = {f"{n}/{k}" for n, m in modules.items() for k in m.state_dict()}
        self._buffers = [
            buffer for n, m in modules.items() for k, buffer in m.named_buffers() if f"{n}/{k}" in names
        ]
        self._seen = [buffer._version for buffer in self._buffers]

    def _padded(self, batches: list[Batch], counts: list[int], wanted: int) -> list[Batch]:
        """Adds copies of some process's batch if this one has fewer than `wanted`."""
        if min(counts) < wanted:
            giver = counts.index(max(counts))
            given = from_first(batches[0] if self.rank == giver else None, giver)
            batches = [*batches, *[given] * (wanted - len(batches))]
        return batches

    @torch.no_grad()
    def share_buffers(self) -> None:
        if not self._buffers:
            return
        versions = [buffer._version for buffer in self._buffers]
        changed = torch.tensor([int(a != b) for a, b in zip(versions, self._seen, strict=True)])
        for flags in gather(changed):
            changed |= flags
        for buffer, is_changed in zip(self._buffers, changed.tolist(), strict=True):
            if is_changed:
                _broadcast(buffer)
        self._seen = [buffer._version for buffer in self._buffers]


class Ddp(_Shared):
    """Every process holds all weights; DDP, as accelerate sets it up, averages gradients during the backward pass.

    One DDP module a turn holds that turn's parameters. Its forward is handed the finished loss: the recipe calls its
    own modules (and any method of them), and DDP finds in the loss's graph what will get a gradient.
    """

    def prepare(self, turns: Sequence[TurnOptimizer]) -> None:
        accelerator = _accelerator(turns[0].parameters[0].device)
        self._reducers = {turn.turn: accelerator.prepare_model(_Reducer(turn.parameters)) for turn in turns}

    def backward(self, total: Tensor, turn: str, *, is_last: bool) -> None:
        # DDP averages, but the processes' losses are parts of one mean
        if is_last:
            total = self._reducers[turn](total * self.size)
        else:
            total = total * self.size
        total.backward()

    def pad(self, batches: list[Batch], counts: list[int]) -> list[Batch]:
        return self._padded(batches, counts, 1)  # DDP waits for one backward pass of each process


class Fsdp(_Shared):
    """Every process holds a shard of each weight and of its optimiser state, and gathers a block when it is called."""

    is_sharded = True

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__(modules)
        with warnings.catch_warnings(action="ignore"):
            self._root = ShardedModules(modules.values())

    def run(self, work: Callable[[], Any]) -> Any:
        found: list[Any] = []

        def totals() -> tuple[Tensor, ...]:
            found.append(work())
            return tuple(one.total for one in found if isinstance(one, Loss))

        self._root(totals)
        return found[0]

    def backward(self, total: Tensor, turn: str, *, is_last: bool) -> None:
        self._root.last_backward(is_last)
        (total * self.size).backward()

    def pad(self, batches: list[Batch], counts: list[int]) -> list[Batch]:
        return self._padded(batches, counts, max(counts))  # blocks are gathered by all at once


class _Reducer(nn.Module):
    """Holds a turn's parameters for DDP to reduce."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.parameters_of_turn = nn.ParameterList(parameters)

    def forward(self, total: Tensor) -> Tensor:
        return total


def _broadcast(tensor: Tensor) -> None:
    shared = tensor.contiguous()
    dist.broadcast(shared, 0)
    tensor.copy_(shared)


def _accelerator(device: torch.device) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError("accelerate is set to use FSDP, but `train.parallel` is 'ddp'; set it to 'fsdp'")
    threads = torch.get_num_threads()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # or accelerate chooses a number itself
    kwargs = DistributedDataParallelKwargs(find_unused_parameters=True)  # pictures use no motion module
    with warnings.catch_warnings(action="ignore"):
        return Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[kwargs])


def choose_parallel(kind: str, modules: dict[str, nn.Module], num_turns: int) -> Strategy:
    """kind: `train.parallel`. Raises UserError for FSDP with a recipe of several turns."""
    if world()[1] == 1:
        return Strategy(modules)
    if kind == "ddp":
        return Ddp(modules)
    if num_turns > 1:
        raise UserError("`train.parallel` fsdp is for recipes with one turn; this one has several: use ddp")
    return Fsdp(modules)
