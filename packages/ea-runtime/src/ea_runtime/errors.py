"""Errors that a user can act on: one line each, shown without a traceback, exit code 2."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(ValueError):
    """A request that cannot be carried out. The message is one line that names what to do next."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class MissingPackageError(UserError):
    """No installed package brings the part that was asked for."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a misspelt name: "; did you mean 'euler'?" or an empty string."""
    close = get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


@contextmanager
def writing(place: str | os.PathLike[str], hint: str) -> Iterator[None]:
    """Within the block a disk that is full or not writable is a UserError that names `place`.

    hint: what to do. safetensors raises its own exception for that, which is no OSError.
    """
    try:
        yield
    except Exception as error:
        is_full = type(error).__name__ == "SafetensorError" and "I/O error" in str(error)
        if not is_full and not isinstance(error, OSError):
            raise
        reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2]
        raise UserError(f"{os.fspath(place)!r} cannot be written: {reason}; {hint}") from error


class NotFiniteError(UserError):
    """Latents or frames became NaN or infinite: the same run again would give the same."""
