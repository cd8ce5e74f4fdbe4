"""ea-lora: LoRA files put on a model without touching its weights, removed bit-exact, or merged."""

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
    "card": ("Card",),
    "convert": ("convert_lora",),
    "io": ("read_lora", "write_lora"),
    "keys": ("find_targets",),
    "layer": ("Layer", "LoraFile"),
    "loaded": ("LoadedLora",),
    "matching": ("match_lora",),
    "merge": ("merge_lora",),
    "network": ("load_lora", "loaded_loras", "unload_lora"),
    "verify": ("LoraReport", "lora_info", "verify_lora"),
}


def __getattr__(name: str) -> object:
    # Lazy, so that the host can import ea_lora.plugin (for `ea --help`, say) without torch.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
