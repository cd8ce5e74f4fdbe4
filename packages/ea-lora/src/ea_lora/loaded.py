"""A LoRA that is on a model: its strength, its matched layers, and its removal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ea_lora.beside import ADAPTER, carried, drop
from ea_runtime.generation.adapters import check_weight


@dataclass(eq=False)
class Shared:
    """State that the hooks of one LoRA share. It points at no module, or a dropped model would stay in memory."""

    path: str
    weight: float
    matched: tuple[str, ...]
    ignored: tuple[str, ...]
    left_out: tuple[str, ...]
    summary: str
    notes: tuple[str, ...] = ()


class DeltaHook:
    """The forward hook of one module. It knows its layer by number only, so a copy of the model finds its own."""

    def __init__(self, shared: Shared, slot: int) -> None:
        self.shared = shared
        self.slot = slot

    @property
    def is_idle(self) -> bool:
        """True if it leaves the output as it is; the denoiser then computes as without a hook."""
        return self.shared.weight == 0.0

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        if self.is_idle:
            return None  # the module's own output, bit-exact
        layer = carried(module, self.slot)
        # A module whose weights wait on the CPU computes on another device; its layer is taken along once.
        if next(layer.parameters()).device != output.device:
            layer.to(output.device)
        return layer(args[0] if args else kwargs["input"], output=output)


@dataclass(eq=False)
class LoadedLora:
    """A LoRA that is on a model. Change `weight` at any time; also a context manager that unloads at its end.

    path: the file. matched, ignored, left_out: names of layers; summary: their counts in one line.
    """

    _shared: Shared
    _hooked: list[tuple[nn.Module, int]] = field(repr=False)

    @property
    def path(self) -> str:
        return self._shared.path

    @property
    def matched(self) -> tuple[str, ...]:
        return self._shared.matched

    @property
    def ignored(self) -> tuple[str, ...]:
        return self._shared.ignored

    @property
    def left_out(self) -> tuple[str, ...]:
        return self._shared.left_out

    @property
    def summary(self) -> str:
        return self._shared.summary

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user: a file made for other weights, without alpha, or untrained."""
        return self._shared.notes

    @property
    def weight(self) -> float:
        """Strength: 0 is off, bit-exact; 1 as trained."""
        return self._shared.weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._shared.weight = check_weight(value)
        self._set_strength()

    def _set_strength(self) -> None:
        for module, key in self._hooked:
            hook = module._forward_hooks.get(key)
            if isinstance(hook, DeltaHook):
                carried(module, hook.slot).set_scale(ADAPTER, self._shared.weight)

    @property
    def is_loaded(self) -> bool:
        return bool(self._hooked)

    def unload(self) -> None:
        """Take it off; the model is as before, bit-exact. Calling it again does nothing."""
        while self._hooked:
            module, key = self._hooked.pop()
            hook = module._forward_hooks.pop(key, None)
            module._forward_hooks_with_kwargs.pop(key, None)
            if isinstance(hook, DeltaHook):
                drop(module, hook.slot)

    def __enter__(self) -> LoadedLora:
        return self

    def __exit__(self, *_: object) -> None:
        self.unload()
