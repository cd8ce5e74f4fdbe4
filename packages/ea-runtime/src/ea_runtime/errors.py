"""Errors that a user can act on: one line each, shown without a traceback, exit code 2."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A request that cannot be carried out. The message is one line that names what to do next."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class MissingPackageError(UserError):
    """A part was asked for that no installed package brings."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a misspelt name: "; did you mean 'euler'?" or an empty string."""
    close = get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
