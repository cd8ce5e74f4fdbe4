"""Number formats of a network's tensors: what overflows in float16 stays float32, however the network gets there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def dtype_of(network: nn.Module, name: str, dtype: torch.dtype) -> torch.dtype:
    """The format of the tensor `name` in a network of `dtype`.

    In float16 the modules that `network._keep_in_fp32_modules` names stay float32, as in transformers and diffusers
    (T5's `wo`).
    """
    import torch

    kept = getattr(network, "_keep_in_fp32_modules", None) or ()
    is_kept = dtype == torch.float16 and not set(kept).isdisjoint(name.split("."))
    return torch.float32 if is_kept else dtype


def cast(
    network: nn.Module, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> None:
    """Move a network in place as `network.to` does, each tensor to its `dtype_of`. None leaves that as it is."""
    kept = {}
    if dtype is not None:
        named = network.named_parameters()
        kept = {name: p.data.float() for name, p in named if dtype_of(network, name, dtype) != dtype}
    network.to(**{k: v for k, v in {"device": device, "dtype": dtype}.items() if v is not None})
    for name, values in kept.items():
        parameter = network.get_parameter(name)
        parameter.data = values.to(parameter.device)
