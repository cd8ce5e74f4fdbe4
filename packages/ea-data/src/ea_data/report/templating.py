"""The page's templates in `templates/`: every value is escaped, a missing one is an error."""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: Any) -> Markup:
    """A template filled in; the result is not escaped again when another template shows it."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ea_data.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "anchor": lambda name: "filter-" + "".join(c if c.isalnum() else "-" for c in name),
        "base64": lambda data: base64.b64encode(data).decode("ascii"),
        "count": "{:,}".format,
        "tenth": "{:.1f}".format,
    }
    return environment
