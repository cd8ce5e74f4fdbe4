"""Hook implementations of ea-lora."""

from __future__ import annotations

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import AdapterRecord, CommandRecord, RecipeRecord


@hookimpl
def ea_recipes() -> list[RecipeRecord]:
    return [
        RecipeRecord(
            "lora",
            "LoRA on a denoiser that stays as it is, from pictures or videos",
            "ea_lora.recipe:LoraRecipe",
        )
    ]


@hookimpl
def ea_adapters() -> list[AdapterRecord]:
    return [
        AdapterRecord(
            "lora",
            "LoRA files of every usual trainer, matched by the names of the model's modules",
            "ea_lora.network:load_lora",
        )
    ]


@hookimpl
def ea_commands() -> list[CommandRecord]:
    return [
        CommandRecord(
            "lora",
            "Inspect, verify, convert and merge LoRA files.",
            "ea_lora.commands:app",
        )
    ]
