"""peft's LoRA layers carried next to a network's modules: the maths is peft's, the network does not change.

`peft.inject_adapter_in_model` replaces each Linear by one of its layers. That is right for training
(adapters.py) and wrong for a pipeline in use: the state dict then has `to_q.base_layer.weight`, so saving,
hashing, exporting or finding a module while a LoRA is on sees another model. So peft injects into a
stand-in tree of weightless Linears of the same sizes, and each layer that comes out, whose base is replaced
by one that passes the module's own output through, is carried by its real module and run from a forward hook:

    output = module(x)                                  the model's own
    output = layer(x, output=output)                    peft's forward: output + scaling * B(A(x))

`Beside` carries the layers. It is a child of the module, so that they follow it between devices (`low_vram`
moves networks at every step), dtypes and copies, and it hides them: no state dict, no parameter list, no
walk over the modules shows them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ea_lora.keys import CONVOLUTIONS
from ea_runtime.machine.light_imports import without_quantizers

if TYPE_CHECKING:
    from ea_lora.matching import Match

#: peft's name of the one adapter in each layer
ADAPTER = "default"
#: name of the child that carries the layers
CHILD = "ea_loras"


class Beside(nn.Module):
    """peft's layers that a module carries, by slot. Moves with the module, hidden from its tree."""

    def __init__(self) -> None:
        super().__init__()
        # not in _modules: whatever walks the tree, a state dict or a strict loading of one, finds nothing
        object.__setattr__(self, "slots", {})

    slots: dict[int, nn.Module]

    def add(self, layer: nn.Module) -> int:
        slot = next(n for n in range(len(self.slots) + 1) if n not in self.slots)
        self.slots[slot] = layer
        return slot

    def named_modules(self, *_: Any, **__: Any) -> Generator[tuple[str, Any], Any, None]:
        yield from ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Beside:
        def at_least_16_bits(tensor: Tensor) -> Tensor:
            """`fn`, but storage narrower than that (fp8) is for the module's own weight: peft computes in these."""
            moved = fn(tensor)
            is_narrow = moved.is_floating_point() and moved.dtype.itemsize < 2
            return tensor.to(moved.device) if is_narrow else moved

        for layer in self.slots.values():
            layer._apply(at_least_16_bits, recurse)
        return self


class _Handed(nn.Module):
    """Replaces a base layer: passes the real one's output through."""

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        return output


class LayerFactory:
    """Makes peft's layers for matched modules; one injection for each size, copies for the rest."""

    def __init__(self) -> None:
        self._templates: dict[tuple[Any, ...], nn.Module] = {}

    def make(self, match: Match, down: Tensor, up: Tensor) -> nn.Module:
        """A layer with these matrices, at strength 1. down (R, I, ...), up (O, R, ...), as the module's weight."""
        module, layer = match.module, match.layer
        key = (type(module).__name__, match.shape, _geometry(module), layer.rank)
        if key not in self._templates:
            self._templates[key] = _template(module, layer.rank)
        made: Any = _shallow(self._templates[key])
        made.lora_alpha = {ADAPTER: layer.scale * layer.rank}
        made.scaling = {ADAPTER: layer.scale}
        for name, matrix in (("lora_A", down), ("lora_B", up)):
            holder = made._modules[name] = _shallow(made._modules[name])
            small = holder._modules[ADAPTER] = _shallow(holder._modules[ADAPTER])
            small._parameters["weight"] = nn.Parameter(matrix, requires_grad=False)
        return made


def _shallow(module: nn.Module) -> Any:
    """A copy of a module with separate dicts of the same contents: copying 600 layers deeply takes seconds."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    twin.__dict__["_parameters"] = dict(module._parameters)
    return twin


def carry(module: nn.Module, layer: nn.Module) -> int:
    """Let a module carry a layer; returns its slot."""
    beside = module._modules.get(CHILD)
    if not isinstance(beside, Beside):
        beside = Beside()
        beside.train(module.training)
        module.add_module(CHILD, beside)
    return beside.add(layer)


def carried(module: nn.Module, slot: int) -> Any:
    """The layer in a slot; peft's class has no useful type."""
    beside = module._modules[CHILD]
    assert isinstance(beside, Beside)
    return beside.slots[slot]


def drop(module: nn.Module, slot: int) -> None:
    """Remove a layer; after the last one nothing is left on the module."""
    beside = module._modules.get(CHILD)
    if isinstance(beside, Beside):
        beside.slots.pop(slot, None)
        if not beside.slots:
            del module._modules[CHILD]


def _geometry(module: nn.Module) -> tuple[Any, ...]:
    return (module.stride, module.padding) if isinstance(module, CONVOLUTIONS) else ()


def _template(module: nn.Module, rank: int) -> nn.Module:
    """One layer of peft's for a module of this kind and size, without matrices in memory."""
    with without_quantizers():
        from peft import LoraConfig, inject_adapter_in_model

    with torch.device("meta"):
        tree = nn.ModuleDict({"layer": _stand_in(module)})
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules="layer", inference_mode=True, init_lora_weights=False
    )
    # with init_lora_weights=False peft draws B too: the caller's numbers must not depend on that
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, tree, ADAPTER, low_cpu_mem_usage=True)
    layer: Any = tree["layer"]
    layer.base_layer = _Handed()
    return layer.eval()


def _stand_in(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, module.out_features, bias=False)
    assert isinstance(module, CONVOLUTIONS)
    kind: Any = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
    return kind(
        module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding, bias=False
    )
