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
