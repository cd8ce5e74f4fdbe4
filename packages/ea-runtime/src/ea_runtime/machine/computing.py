"""The device and the number format that a network computes in, where its weights wait elsewhere or in another one.

Offloading and narrow storage are hooks on modules (diffusers', and accelerate's): a parameter then says where it waits,
not where it is used.
"""

from __future__ import annotations

from typing import Any

import torch


def hook_of(module: Any, name: str) -> Any:
    """diffusers' hook of that name on a module, or None."""
    registry = vars(module).get("_diffusers_hook")
    return None if registry is None else registry.get_hook(name)


def compute_dtype(network: Any) -> torch.dtype:
    """The number format that a network computes in; float32 for one without weights."""
    modules = network.modules() if hasattr(network, "modules") else ()
    for module in modules:
        hook = hook_of(module, "layerwise_casting")
        if hook is not None:
            return hook.compute_dtype
    first = next(_floats(network), None)
    return torch.float32 if first is None else first.dtype


def compute_device(network: Any) -> torch.device:
    """The device that a network computes on; the CPU for one without weights."""
    modules = network.modules() if hasattr(network, "modules") else ()
    for module in modules:
        hook = hook_of(module, "group_offloading")
        if hook is not None:
            return torch.device(hook.config.onload_device)
        place = getattr(vars(module).get("_hf_hook"), "execution_device", None)
        if place is not None:
            return torch.device(f"cuda:{place}" if isinstance(place, int) else place)
    first = next(_floats(network), None)
    return torch.device("cpu") if first is None else first.device


def for_network(network: Any, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor where a network computes, in its number format; as it is for an exported network."""
    if not hasattr(network, "parameters"):
        return tensor
    return tensor.to(compute_device(network), compute_dtype(network))


def _floats(network: Any) -> Any:
    """A network's floating-point parameters."""
    return (
        (p for p in network.parameters() if p.is_floating_point())
        if hasattr(network, "parameters")
        else iter(())
    )
