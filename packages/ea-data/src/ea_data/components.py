"""Splitters, scorers, filters and captioners by name, from the settings of a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.plugins.host import get_host


def make(kind: str, name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The component `name` of a kind ("splitters", "scorers", "filters", "captioners"), with its settings.

    settings: its options as in a profile, without `name`. Nothing heavy is loaded before the component is called.
    Raises UserError, one line, for an unknown name, an unknown key or an invalid value.
    """
    record = get_host().get(kind, name)
    model = record.options_model()
    if model is None:
        if settings:
            raise UserError(f"{name!r} of {kind} has no options, got {', '.join(sorted(settings))}")
        return record.build(None)
    from ea_runtime.settings import validate

    return record.build(validate(model, dict(settings or {}), f"{name!r} of {kind}"))


def missing(component: Any) -> list[str]:
    """One line for each path or package that the component lacks; none for one without a method `missing`."""
    return list(component.missing()) if hasattr(component, "missing") else []
