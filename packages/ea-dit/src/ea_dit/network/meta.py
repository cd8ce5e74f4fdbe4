"""Values on the meta device, where a network is built for its names and shapes alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def unless_meta(compute: Callable[[], Tensor], *shape: int) -> Tensor:
    """`compute()`, of that shape; an empty tensor on meta, where arithmetic would import torch._dynamo and sympy."""
    return torch.empty(shape) if torch.get_default_device().type == "meta" else compute()
