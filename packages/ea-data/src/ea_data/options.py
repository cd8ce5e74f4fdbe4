"""Base of the options of splitters, scorers, filters and captioners: frozen, and unknown keys are refused."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Settings of one component, given next to its name in a profile."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class NoOptions(Options):
    """No settings."""


def missing_packages(component: str, modules: dict[str, str]) -> list[str]:
    """One line for each of `modules` ({import name: what to install}) that is not installed; nothing is imported."""
    return [
        f"{component}: the package {name!r} is not installed; pip install {install!r}"
        for name, install in modules.items()
        if find_spec(name) is None
    ]


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """package -> version, of those that are installed."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
