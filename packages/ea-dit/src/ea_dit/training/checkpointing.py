"""Gradient checkpointing that recomputes with the very tensors of the first pass.

Training in bf16 runs the network on copies of its weights (ea_runtime.training.update.precision). Plain checkpointing
would recompute a block, in the backward pass, after those copies are gone, with other weights and another attention
kernel. So each block keeps its tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ea_dit.network.model import Transformer3DModel


def checkpoint_blocks(model: Transformer3DModel, around: Callable[[], AbstractContextManager[Any]]) -> None:
    """Turns on checkpointing of every block. around: a context that a block's computation needs, both times."""

    def run(block: nn.Module, *args: Any) -> Any:
        # a sharded block gathers its weights whenever it is called, so it needs no hold of them
        is_sharded = isinstance(block, FSDPModule)
        tensors = {} if is_sharded else {**dict(block.named_parameters()), **dict(block.named_buffers())}

        def compute(*inner: Any) -> Tensor:
            with around():
                return block(*inner) if is_sharded else functional_call(block, tensors, inner)

        return checkpoint(compute, *args, use_reentrant=False)

    model.enable_gradient_checkpointing(run)
