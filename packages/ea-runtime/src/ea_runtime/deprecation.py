"""Deprecation of what is public (docs/stability.md): one warning that names the replacement and the last version.

A hook: `@hookspec(warn_on_impl=deprecation(...))`, which warns for each plugin that implements it. A function or class:
`@deprecated(...)`. tests/test_stability.py fails when a name is still there in the version that was to drop it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class EaDeprecationWarning(FutureWarning):
    """Use of something that a later version will not have. Shown by default: whoever runs a plugin can update it."""


def deprecation(name: str, *, instead: str, since: str, gone_in: str) -> EaDeprecationWarning:
    """The warning for a public name.

    instead: what to use. since, gone_in: versions of ea-runtime as "0.3": the first that warns, the first without it;
    `gone_in` is two minor versions after `since` or a major version, else ValueError.
    """
    first, last = (tuple(int(part) for part in version.split(".")) for version in (since, gone_in))
    if len(first) != 2 or len(last) != 2 or not (last[0] > first[0] or last[1] >= first[1] + 2):
        raise ValueError(
            f"`gone_in` must be two minor versions after `since` ({since!r}) or a major one, got {gone_in!r}; "
            "give plugins time to follow (docs/stability.md)"
        )
    return EaDeprecationWarning(
        f"{name} is deprecated since ea-runtime {since} and gone in {gone_in}; use {instead}"
    )


def deprecated(
    name: str, *, instead: str, since: str, gone_in: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that warns at each call's place; arguments as `deprecation`."""
    warning = deprecation(name, instead=instead, since=since, gone_in=gone_in)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            warnings.warn(warning, stacklevel=2)
            return function(*args, **kwargs)

        return call

    return decorate
