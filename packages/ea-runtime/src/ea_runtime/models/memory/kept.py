"""The tensors that autograd keeps for the backward pass: counted while the network itself runs, on any device.

Training's dry runs and LoRA's estimates run their networks on torch's meta device under it, so nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def kept_for_backward(on_new: Callable[[int, Tensor], None] | None = None) -> Iterator[dict[int, Tensor]]:
    """Collects what autograd saves within the block: one tensor of each storage, by the storage's number.

    on_new: called with the number and the tensor of each storage that is not collected yet. What the caller puts into
    the dict counts as collected.
    """
    kept: dict[int, Tensor] = {}  # alive, so that no number is used again

    def take(tensor: Tensor) -> Tensor:
        number = tensor.untyped_storage()._cdata
        if number not in kept:
            kept[number] = tensor
            if on_new is not None:
                on_new(number, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(take, lambda tensor: tensor):
        yield kept
