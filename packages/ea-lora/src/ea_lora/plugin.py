"""What ea-lora brings to the host."""

from __future__ import annotations

from typing import Any

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import AdapterRecord, CommandRecord, RecipeRecord


def _commands() -> Any:
    from ea_lora.commands import app

    return app


def _recipe() -> Any:
    from ea_lora.recipe import LoraRecipe

    return LoraRecipe


@hookimpl
def ea_recipes() -> list[RecipeRecord]:
    return [RecipeRecord("lora", "LoRA on a denoiser that stays as it is, from pictures or videos", _recipe)]


def _adapter() -> Any:
    from ea_lora.network import load_lora

    return load_lora


@hookimpl
def ea_adapters() -> list[AdapterRecord]:
    return [AdapterRecord("lora", "LoRA files: kohya's, peft's, diffusers' and ComfyUI's layouts", _adapter)]


@hookimpl
def ea_commands() -> list[CommandRecord]:
    return [
        CommandRecord(
            "lora", "Look into LoRA files, prove what they do to a model, convert, merge.", _commands
        )
    ]
