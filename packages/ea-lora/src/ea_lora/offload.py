"""Frozen blocks that wait on the CPU: each comes to the device when it is computed, and again in the backward pass.

Works with gradient checkpointing, which computes a block a second time for its gradients: between the
two, nothing of a block but its input is on the device. The adapters' own matrices stay there, as the optimiser does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ea_runtime.errors import UserError


def find_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a network: its longest list of modules (`transformer_blocks` of V2's)."""
    lists = [child for child in network.children() if isinstance(child, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def offload_blocks(
    network: nn.Module,
    count: int,
    device: str | torch.device,
    around: Callable[[], AbstractContextManager[Any]],
) -> int:
    """Send the frozen tensors of the last `count` blocks to the CPU and compute every block with checkpointing.

    around: a context that a block's computation needs, both times. Returns how many bytes left the device.
    Raises UserError for a network without blocks or whose checkpointing cannot be set.
    """
    blocks = find_blocks(network)
    enable: Any = getattr(network, "enable_gradient_checkpointing", None)
    if not blocks or enable is None:
        raise UserError(
            f"`memory.offload_blocks` needs a denoiser made of blocks with checkpointing; {type(network).__name__} "
            "has none: set it to 0"
        )
    if count > len(blocks):
        raise UserError(
            f"`memory.offload_blocks` must be at most {len(blocks)}, the denoiser's blocks, got {count}"
        )
    moved = 0
    for block in blocks[len(blocks) - count :]:
        for tensor in _frozen(block):
            moved += tensor.nbytes
            tensor.data = tensor.data.cpu()
            if torch.cuda.is_available():  # pinned memory is copied during the computation
                tensor.data = tensor.data.pin_memory()
    place = torch.device(device)

    def run(block: nn.Module, *args: Any) -> Any:
        # taken now: training in 16 bits puts copies in the parameters' place, which are gone in the backward pass
        tensors = {**dict(block.named_parameters()), **dict(block.named_buffers())}

        def compute(*inner: Any) -> Tensor:
            there = {name: tensor.to(place, non_blocking=True) for name, tensor in tensors.items()}
            with around():
                return functional_call(block, there, inner)

        return checkpoint(compute, *args, use_reentrant=False)

    enable(run)
    return moved


def _frozen(block: nn.Module) -> list[Tensor]:
    return [*(p for p in block.parameters() if not p.requires_grad), *block.buffers()]
