"""What ea-data brings to the host."""

from __future__ import annotations

from typing import Any

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import CommandRecord, RecipeRecord


def _commands() -> Any:
    from ea_data.commands import app

    return app


def _text_recipe() -> Any:
    from ea_data.draw.text_recipe import TextRecipe

    return TextRecipe


@hookimpl
def ea_commands() -> list[CommandRecord]:
    return [
        CommandRecord("data", "Draw training sets and check what a model made of their prompts.", _commands)
    ]


@hookimpl
def ea_recipes() -> list[RecipeRecord]:
    return [
        RecipeRecord(
            "text", "A small T5 encoder and its tokenizer, from the captions of drawn scenes", _text_recipe
        )
    ]
