"""ea-lora: LoRA files applied to a model without touching its weights, taken off to the bit, or merged."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .card import Card
    from .convert import convert_lora
    from .io import read_lora, write_lora
    from .keys import find_targets
    from .layer import Layer, LoraFile
    from .loaded import LoadedLora
    from .matching import match_lora
    from .merge import merge_lora
    from .network import load_lora, loaded_loras, unload_lora
    from .verify import LoraReport, lora_info, verify_lora

__all__ = [
    "load_lora",
    "loaded_loras",
    "unload_lora",
    "LoadedLora",
    "merge_lora",
    "convert_lora",
    "Card",
    "verify_lora",
    "LoraReport",
    "lora_info",
    "read_lora",
    "write_lora",
    "Layer",
    "LoraFile",
    "match_lora",
    "find_targets",
]

_HOMES = {
    "load_lora": "network",
    "loaded_loras": "network",
    "unload_lora": "network",
    "LoadedLora": "loaded",
    "merge_lora": "merge",
    "convert_lora": "convert",
    "Card": "card",
    "verify_lora": "verify",
    "LoraReport": "verify",
    "lora_info": "verify",
    "read_lora": "io",
    "write_lora": "io",
    "Layer": "layer",
    "LoraFile": "layer",
    "match_lora": "matching",
    "find_targets": "keys",
}


def __getattr__(name: str) -> object:
    # Lazy, so that the host can import ea_lora.plugin (for `ea --help`, say) without torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
