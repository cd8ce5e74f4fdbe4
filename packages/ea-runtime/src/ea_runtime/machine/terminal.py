"""Consoles of all commands: text is printed as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def make_console(**settings: Any) -> Console:
    """A rich console, its `settings` as rich has them; `:cat:` in a path or prompt stays what it is."""
    from rich.console import Console

    return Console(emoji=False, **settings)
