"""Weights in shards, one per process (torch's fully_shard, FSDP2), and gathering them whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(module: nn.Module) -> bool:
    """True if some parameter of `module` is sharded."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


class ShardedModules(nn.Module):
    """Shards `modules` in place and runs what uses them.

    Each module of their module lists (a transformer's blocks) is gathered when it is called, then released; the rest
    is gathered for the whole of `forward`. torch's fully_shard is used beneath accelerate, which on CPUs
    takes an FSDP plugin and then quietly makes DDP of it (1.15), and prepares one model with its optimiser only.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules)
        for parameter in self.held.parameters():
            parameter.data = parameter.data.contiguous()  # shards have no other layout (channels last)
        for block in _blocks(self.held, is_root=True):
            fully_shard(block)
        fully_shard(self, reshard_after_forward=True)  # a forward without a backward must leave nothing stale

    def forward(self, work: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Returns `work()`, which may call the modules and any of their methods.

        Weights are gathered again for a backward pass from the tensors returned. They come in a tuple: torch 2.9
        finds none in a dataclass.
        """
        return work()

    def last_backward(self, is_last: bool) -> None:
        """Sets if the next backward pass is a step's last: only then are gradients exchanged."""
        assert isinstance(self, FSDPModule)
        self.set_requires_gradient_sync(is_last)


def _blocks(module: nn.Module, is_root: bool = False) -> Iterator[nn.Module]:
    """The outermost members of module lists that hold parameters and are called as modules."""
    for child in module.children():
        is_list = isinstance(child, (nn.ModuleList, nn.ModuleDict))
        has_any = next(child.parameters(), None) is not None
        if isinstance(module, nn.ModuleList) and not is_root and not is_list and has_any:
            yield child
        else:
            yield from _blocks(child)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered (every process must ask for it); any other unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(target: Tensor, values: Tensor) -> None:
    """Copies a whole tensor into one that may be sharded: each process takes its part, nothing is sent."""
    target.copy_(like(target, values))


def like(target: Tensor, values: Tensor) -> Tensor:
    """`values`, whole, sharded and laid out in memory as `target` is, in its own dtype."""
    if isinstance(target, DTensor):
        values = values.to(target.device)
        return distribute_tensor(values, target.device_mesh, target.placements, src_data_rank=None)
    if values.shape == target.shape:
        return torch.empty_like(target, dtype=values.dtype).copy_(values)
    return values


@contextmanager
def whole_weights(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block sharded modules have whole parameters, to be saved; every process must take part.

    They are copies: what is written to them is lost.
    """
    kept: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in modules:
            for part in module.modules():
                for name, parameter in list(part._parameters.items()):
                    if isinstance(parameter, DTensor):
                        gathered = nn.Parameter(
                            whole(parameter.detach()), requires_grad=parameter.requires_grad
                        )
                        kept.append((part, name, parameter))
                        part._parameters[name] = gathered
        yield
    finally:
        for part, name, parameter in kept:
            part._parameters[name] = parameter
