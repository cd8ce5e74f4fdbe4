"""Warnings as notes on the console, which do not tear a running bar."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class _ToConsole(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        self._console.print(f"note: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def notes_on(console: Console) -> Iterator[None]:
    """Inside, warnings of all loggers are shown as "note: ..." on the console, above a running bar."""
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers[:] = [_ToConsole(console)]
    try:
        yield
    finally:
        root.handlers[:] = before
