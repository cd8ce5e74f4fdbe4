"""LoRA on a loaded model: weights are never written, so taking it off leaves every bit as it was.

Each adapted module gets a forward hook that adds `weight * scale * up(down(x))` to its output, and its two
small matrices as buffers that no state dict shows.

Why hooks and not peft's layers: `peft.inject_adapter_in_model` puts a wrapper in each Linear's place. The
state dict then says `to_q.base_layer.weight`, so saving, hashing, exporting or looking a module up while a
LoRA is on meets another model, and taking it off means rebuilding the tree. With a hook all of that stays,
several LoRAs lie side by side, and removal deletes what was added. The matrices are buffers so that they
follow their module between devices (`low_vram` moves networks at every step) and dtypes.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ea_lora.io import Layer, LoraFile, read_lora
from ea_lora.keys import PARTS
from ea_lora.matching import Match, Matching, match_lora, networks_of
from ea_runtime.errors import UserError
from ea_runtime.safe_files import quote

logger = logging.getLogger("ea")

#: V2's own strength of a LoRA
DEFAULT_WEIGHT = 0.55
MAX_WEIGHT = 100.0
_CONVOLVE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@dataclass(eq=False)
class _Shared:
    """What the hooks of one LoRA share. Points at no module, or a dropped model would stay in memory."""

    path: str
    weight: float
    matched: tuple[str, ...]
    ignored: tuple[str, ...]
    left_out: tuple[str, ...]
    summary: str


class _Delta:
    """The forward hook of one module."""

    def __init__(self, shared: _Shared, names: tuple[str, str], scale: float) -> None:
        self.shared = shared
        self.names = names
        self.scale = scale

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        factor = self.scale * self.shared.weight
        if factor == 0.0:
            return None  # the module's own output, to the bit
        x: Tensor = args[0] if args else kwargs["input"]
        down, up = (module.get_buffer(name) for name in self.names)
        if isinstance(module, nn.Linear):
            low = F.linear(x, down).reshape(-1, len(down))  # (N, R)
            # the second product is added where it is computed: one pass over the output less
            sums = torch.addmm(output.reshape(len(low), -1), low, up.t(), alpha=factor)  # (N, O)
            return sums.view_as(output)
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        convolve: Any = _CONVOLVE[down.ndim]
        low = convolve(x, down, None, module.stride, module.padding)  # (B, R, ...)
        return torch.add(output, convolve(low, up), alpha=factor)


@dataclass(eq=False)
class LoadedLora:
    """A LoRA that is on a model. Change `weight` at any time; also a context manager that unloads at its end.

    path: the file. matched, ignored, left_out: names of layers; summary: their counts in one line.
    """

    _shared: _Shared
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
    def weight(self) -> float:
        """Strength: 0 is off to the bit, 1 as trained."""
        return self._shared.weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._shared.weight = check_weight(value)

    @property
    def is_loaded(self) -> bool:
        return bool(self._hooked)

    def unload(self) -> None:
        """Take it off; the model is as it was, to the bit. Calling it again does nothing."""
        while self._hooked:
            module, key = self._hooked.pop()
            hook = module._forward_hooks.pop(key, None)
            module._forward_hooks_with_kwargs.pop(key, None)
            if isinstance(hook, _Delta):
                _drop_buffers(module, hook.names)

    def __enter__(self) -> LoadedLora:
        return self

    def __exit__(self, *_: object) -> None:
        self.unload()


def load_lora(
    pipe: Any,
    path: str | os.PathLike[str] | LoraFile,
    weight: float = DEFAULT_WEIGHT,
    *,
    parts: Collection[str] = PARTS,
    exclude: Sequence[str] = (),
) -> LoadedLora:
    """Put a LoRA on a model without changing its weights. Several may be on at once; their effects add.

    Args:
        pipe: a VideoPipeline, or any torch module, which counts as a denoiser.
        path: a .safetensors file in V2's layout, or what `read_lora` gave.
        weight: strength, -100..100; 0 is off, 1 as trained, 0.55 V2's default.
        parts: of "denoiser" and "text".
        exclude: shell patterns over module paths to leave alone, "*attn_temporal*" for the motion modules.

    Returns a handle; its `weight` can be set between runs at no cost.

    Raises UserError, with the model as it was: see `read_lora` and `match_lora`, and for a compiled model.
    """
    weight = check_weight(weight)
    networks = networks_of(pipe)
    for part, network in networks.items():
        if network is not None:
            _require_hooks_work(part, network)
    file = path if isinstance(path, LoraFile) else read_lora(path)
    matching = match_lora(file, networks, parts, exclude)
    prepared = [
        (match, *_prepare(match)) for match in matching.matches
    ]  # all that can fail comes before any change
    lora = _attach(matching, prepared, weight)
    logger.log(logging.WARNING if matching.ignored else logging.INFO, "%s", lora.summary)
    if not any(bool(up.any()) for _, _, up in prepared):
        logger.warning("LoRA %s changes nothing: every up matrix is 0, as before training", quote(lora.path))
    return lora


def unload_lora(pipe: Any, lora: LoadedLora | None = None) -> None:
    """Take one LoRA off, or all of them with None; weights and outputs are then as before, to the bit.

    Raises UserError for a LoRA that is on another model.
    """
    found = loaded_loras(pipe)
    if lora is None:
        for one in found:
            one.unload()
    elif any(one._shared is lora._shared for one in found):
        lora.unload()
    elif lora.is_loaded:
        raise UserError(f"`lora` {quote(lora.path)} is not on this model; call its own unload()")


def loaded_loras(pipe: Any) -> list[LoadedLora]:
    """What is on a model, in the order of loading. The modules themselves tell; those of copies do too."""
    found: dict[int, LoadedLora] = {}
    for module, key, hook in _hooks(pipe):
        lora = found.setdefault(id(hook.shared), LoadedLora(hook.shared, []))
        lora._hooked.append((module, key))
    return sorted(found.values(), key=lambda lora: min(key for _, key in lora._hooked))


def check_weight(value: Any) -> float:
    """A strength as a float. Raises UserError for what is no number or beyond -100..100."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or abs(value) > MAX_WEIGHT:
        raise UserError(f"`weight` of a LoRA must be a number from -100 to 100, got {quote(value)}; try 0.55")
    return float(value)


def _prepare(match: Match) -> tuple[Tensor, Tensor]:
    """down and up as the module needs them: its device, dtype and number of dimensions."""
    weight = match.weight
    if weight.is_meta:
        raise UserError(
            f"{match.path} has no weights in memory (meta device); load the LoRA before offloading"
        )
    tail = (1,) * (weight.ndim - 2)
    # a pipeline runs in inference mode; tensors made there could never be used outside it
    with torch.inference_mode(False), torch.no_grad():
        down, up = (
            matrix.to(device=weight.device, dtype=weight.dtype, copy=True).reshape(*matrix.shape, *tail)
            for matrix in match.layer.matrices()
        )
    for name, tensor in (("down", down), ("up", up)):
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"LoRA layer {quote(match.layer.name)}: {name} does not fit into {str(weight.dtype)[6:]}; "
                "load the model in bfloat16 or float32"
            )
    return down, up


def _attach(matching: Matching, prepared: list[tuple[Match, Tensor, Tensor]], weight: float) -> LoadedLora:
    def names(layers: Sequence[Layer]) -> tuple[str, ...]:
        return tuple(layer.name for layer in layers)

    shared = _Shared(
        path=str(matching.file.path),
        weight=weight,
        matched=names([match.layer for match in matching.matches]),
        ignored=names(matching.ignored),
        left_out=names(matching.left_out),
        summary=matching.summary(),
    )
    lora = LoadedLora(shared, [])
    try:
        for match, down, up in prepared:
            module = match.module
            slot = next(n for n in range(len(module._buffers) + 1) if f"lora_down_{n}" not in module._buffers)
            hook = _Delta(shared, (f"lora_down_{slot}", f"lora_up_{slot}"), match.layer.scale)
            handle = module.register_forward_hook(hook, with_kwargs=True)
            lora._hooked.append((module, handle.id))
            for name, tensor in zip(hook.names, (down, up), strict=True):
                module.register_buffer(name, tensor, persistent=False)
    except BaseException:  # an interrupt between two modules must not leave half a LoRA
        lora.unload()
        raise
    return lora


def _drop_buffers(module: nn.Module, names: tuple[str, str]) -> None:
    for name in names:
        module._buffers.pop(name, None)
        module._non_persistent_buffers_set.discard(name)


def _hooks(pipe: Any) -> Iterator[tuple[nn.Module, int, _Delta]]:
    for network in networks_of(pipe).values():
        for module in network.modules() if network is not None else ():
            for key, hook in list(module._forward_hooks.items()):
                if isinstance(hook, _Delta):
                    yield module, key, hook


def _require_hooks_work(part: str, network: nn.Module) -> None:
    """A compiled module keeps running what it was compiled from: a LoRA put on it later would do nothing."""
    for module in network.modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise UserError(
                f"the {part} is compiled, and a LoRA put on it now would do nothing; load it, then compile"
            )
