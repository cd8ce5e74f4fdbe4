"""The page's templates in `templates/`: every value is escaped, a missing one is an error."""

from __future__ import annotations

import base64
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ea_data.records.files import tell_cut, tell_loss
from ea_runtime.files.templates import page_templates

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> Markup:
    """A template filled in; the result is not escaped again when another template shows it."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    return page_templates(
        "ea_data.report",
        anchor=lambda name: "filter-" + "".join(c if c.isalnum() else "-" for c in name),
        base64=lambda data: base64.b64encode(data).decode("ascii"),
        count="{:,}".format,
        tenth="{:.1f}".format,
        cut=tell_cut,
        loss=tell_loss,
    )
