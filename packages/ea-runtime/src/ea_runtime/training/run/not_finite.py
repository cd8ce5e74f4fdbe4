"""Finds where in a step a number first was not finite: does the step again and checks every module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def find_first(modules: Mapping[str, nn.Module], again: Callable[[], float]) -> str | None:
    """The first value that is not finite, in the order of computing: "the weight gradient of `vae.decoder.conv_in`".

    modules: the run's, by name. again: does the step's forward and backward passes and returns its loss.
    None: everything was finite this time.
    """
    outputs: list[str] = []
    gradients: list[str] = []

    def look(value: Any, what: str, seen: list[str]) -> None:
        if not seen and isinstance(value, Tensor) and value.is_floating_point() and not _is_finite(value):
            seen.append(what)

    def on_gradient(what: str) -> Callable[[Tensor], None]:
        return lambda gradient: look(gradient, what, gradients)

    def after(place: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            for tensor in _tensors(out):
                look(tensor, f"the output of `{place}`", outputs)
                if tensor.requires_grad:
                    # reported at the module that made it: the incoming gradient is that of its output
                    tensor.register_hook(on_gradient(f"the gradient that reaches the output of `{place}`"))

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            for inner, part in module.named_modules(prefix=name):
                stack.callback(part.register_forward_hook(after(inner)).remove)
                for own, parameter in part.named_parameters(recurse=False):
                    if parameter.requires_grad:
                        what = f"the {own} gradient of `{inner}`"
                        stack.callback(parameter.register_hook(on_gradient(what)).remove)
        loss = again()
    found = [*outputs, *(["the loss"] if not math.isfinite(loss) else []), *gradients]
    return found[0] if found else None


def _tensors(out: Any) -> list[Tensor]:
    """The tensors in a module's output, those in the attributes of an object such as a posterior too."""
    leaves = tree_leaves(out)
    objects = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    leaves += tree_leaves([list(getattr(leaf, "__dict__", {}).values()) for leaf in objects])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _is_finite(tensor: Tensor) -> bool:
    local = getattr(tensor, "_local_tensor", tensor)  # a shard of a weight
    return bool(torch.isfinite(local).all())
