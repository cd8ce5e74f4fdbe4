"""LoRA on a loaded model: weights are never written, so the model without it is bit-exact again.

Each adapted module gets a forward hook that runs peft's own LoRA layer on the module's output. The layers are
carried next to the modules (see beside.py, also for why they do not replace them): names, types, state
dict and hash of the model are the same with a LoRA on as without, several LoRAs can be on at once, and removing
one deletes its layers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ea_lora.beside import LayerFactory, carry, drop
from ea_lora.card import base_note
from ea_lora.io import as_file
from ea_lora.keys import PARTS
from ea_lora.layer import MAX_PATH, LoraFile
from ea_lora.loaded import DeltaHook, LoadedLora, Shared
from ea_lora.matching import Match, Matching, match_lora, networks_of
from ea_runtime.engines.base import exported_weights
from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote
from ea_runtime.generation.adapters import DEFAULT_WEIGHT, check_weight

logger = logging.getLogger("ea")


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
        pipe: a VideoPipeline, or any torch module, taken as a denoiser.
        path: a .safetensors file of any trainer, a folder of peft's, or the result of `read_lora`.
        weight: strength, -100..100; 0 is off, 1 as trained. V2's example takes 0.55.
        parts: of "denoiser" and "text", one or several.
        exclude: shell patterns over module paths to leave alone, one or several; "*attn_temporal*": the motion modules.

    Returns a handle; its `weight` can be changed between runs at no cost.

    Raises UserError, with the model unchanged: see `read_lora` and `match_lora`, and for a compiled model.
    """
    weight = check_weight(weight)
    # text is a sequence too, of characters, of which "*" fits everything
    parts = (parts,) if isinstance(parts, str) else parts
    exclude = (exclude,) if isinstance(exclude, str) else exclude
    networks = networks_of(pipe)
    for part, network in networks.items():
        if network is not None:
            _require_hooks_work(part, network)
    file = as_file(path)
    matching = match_lora(file, networks, parts, exclude)
    held = exported_weights(pipe)
    if held:  # another engine than torch runs the networks
        from ea_lora.exported import put_on_exported

        lora = put_on_exported(held, matching, _share(matching, weight, _notes(pipe, matching)))
    else:
        factory = LayerFactory()
        # all that can fail comes before any change
        prepared = [(match, factory.make(match, *_prepare(match))) for match in matching.matches]
        lora = _attach(matching, prepared, weight, _notes(pipe, matching))
    logger.log(logging.WARNING if matching.ignored else logging.INFO, "%s", lora.summary)
    for note in lora.notes:
        logger.warning("LoRA %s: %s", quote(lora.path, MAX_PATH), note)
    return lora


def _notes(pipe: Any, matching: Matching) -> tuple[str, ...]:
    base = base_note(matching.file.metadata, getattr(pipe, "model", None))
    is_trained = any(bool(match.layer.up.any()) for match in matching.matches)
    idle = None if is_trained else "it changes nothing: every up matrix is 0, as before training"
    return (*matching.file.notes, *(note for note in (base, idle) if note is not None))


def unload_lora(pipe: Any, lora: LoadedLora | None = None) -> None:
    """Take one LoRA off, or all of them with None; weights and outputs are then as before, bit-exact.

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
    """The LoRAs on a model, in the order of loading, found on its modules; so a copy of a model has them too."""
    found: dict[int, LoadedLora] = {}
    for module, key, hook in _hooks(pipe):
        lora = found.setdefault(id(hook.shared), LoadedLora(hook.shared, []))
        lora._hooked.append((module, key))
    on_modules = sorted(found.values(), key=lambda lora: min(key for _, key in lora._hooked))
    owners = [one.owner for weights in exported_weights(pipe).values() for one in weights.added]
    return [*on_modules, *dict.fromkeys(one for one in owners if isinstance(one, LoadedLora))]


def _prepare(match: Match) -> tuple[Tensor, Tensor]:
    """down and up with the module's device, dtype and number of dimensions."""
    weight, dtype = match.weight, match.dtype
    device = weight.device
    if weight.is_meta:
        if not hasattr(match.module, "_hf_hook"):
            raise UserError(f"{match.path} has no weights in memory (meta device); load the model with them")
        device = torch.device("cpu")  # offloaded by accelerate: the layer follows what comes in
    tail = (1,) * (len(match.shape) - 2)
    # a pipeline runs in inference mode; tensors made there could never be used outside it
    with torch.inference_mode(False), torch.no_grad():
        down, up = (
            matrix.to(device=device, dtype=dtype, copy=True).reshape(*matrix.shape, *tail)
            for matrix in match.layer.matrices()
        )
    for name, tensor in (("down", down), ("up", up)):
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"LoRA layer {quote(match.layer.name)}: {name} overflows {str(dtype)[6:]}; "
                "load the model in bfloat16 or float32"
            )
    return down, up


def _share(matching: Matching, weight: float, notes: tuple[str, ...]) -> Shared:
    path, summary = str(matching.file.path), matching.summary()
    return Shared(path=path, weight=weight, summary=summary, notes=notes, **matching.names())


def _attach(
    matching: Matching, prepared: list[tuple[Match, nn.Module]], weight: float, notes: tuple[str, ...]
) -> LoadedLora:
    shared = _share(matching, weight, notes)
    lora = LoadedLora(shared, [])
    try:
        for match, layer in prepared:
            hook = DeltaHook(shared, carry(match.module, layer))
            try:
                handle = match.module.register_forward_hook(hook, with_kwargs=True)
            except BaseException:
                drop(match.module, hook.slot)
                raise
            lora._hooked.append((match.module, handle.id))
        lora.weight = weight
    except BaseException:  # an interrupt between two modules must not leave half a LoRA
        lora.unload()
        raise
    return lora


def _hooks(pipe: Any) -> Iterator[tuple[nn.Module, int, DeltaHook]]:
    for network in networks_of(pipe).values():
        for module in network.modules() if network is not None else ():
            for key, hook in list(module._forward_hooks.items()):
                if isinstance(hook, DeltaHook):
                    yield module, key, hook


def _require_hooks_work(part: str, network: nn.Module) -> None:
    """Refuses compiled modules: they keep running without hooks, so a LoRA would do nothing."""
    for module in network.modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise UserError(
                f"the {part} is compiled, and a LoRA put on it now would do nothing; load it, then compile"
            )
