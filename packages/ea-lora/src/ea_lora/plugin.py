"""What ea-lora brings to the host."""

from __future__ import annotations

from typing import Any

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import CommandRecord


def _commands() -> Any:
    from ea_lora.commands import app

    return app


@hookimpl
def ea_commands() -> list[CommandRecord]:
    return [
        CommandRecord("lora", "Look into LoRA files, prove what they do to a model, merge them.", _commands)
    ]
