"""Weights that wait elsewhere, fetched for work outside their module's `forward`.

Offloading and narrow storage (diffusers' hooks, and accelerate's) act when a module's `forward` is called: before and
after, its weights may be on another device, of another type, or hold anything at all. `prepare()` and the signal of
step caches read weights without calling the module that they wait for; they do so inside `weights_of`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

#: diffusers' hooks that move or cast weights; what else is hooked wants real calls
_NAMES = ("group_offloading", "layerwise_casting")
#: attributes that hold a hook of accelerate, and what reads weights from a model's files (ea_runtime)
_ATTRIBUTES = ("_hf_hook", "ea_waiting")


@contextmanager
def weights_of(module: nn.Module) -> Iterator[None]:
    """Run a module's hooks on its weights as its `forward` would, around the body."""
    hooks = _hooks(module)
    for hook in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for hook in reversed(hooks):
            hook.post_forward(module, None)


def _hooks(module: nn.Module) -> list[Any]:
    """The hooks in the order in which a call runs them."""
    found = [vars(module)[name] for name in _ATTRIBUTES if name in vars(module)]
    registry = vars(module).get("_diffusers_hook")
    if registry is not None:  # the one that was registered last runs first
        found += [registry.hooks[name] for name in reversed(registry._hook_order) if name in _NAMES]
    return found
