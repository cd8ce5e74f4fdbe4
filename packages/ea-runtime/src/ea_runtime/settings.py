"""Typed options from a table: pydantic's errors become one line."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ea_runtime.errors import UserError, nearest
from ea_runtime.files.safe import quote

M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], table: Any, where: str) -> M:
    """`model` from a table. Raises UserError, one line, naming the key, what was expected and what came.

    where: the file and table, in front of the line.
    """
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        location = first["loc"]
        key = ".".join(str(part) for part in location) or "table"
        if first["type"] == "extra_forbidden":
            known = _names(model, location[:-1])
            hint = nearest(str(location[-1]), known) or f"; there are: {', '.join(known)}"
            raise UserError(f"{where}: unknown key `{key}`{hint}") from None
        if first["type"] == "missing":
            raise UserError(f"{where}: key `{key}` is missing") from None
        raise UserError(f"{where}: `{key}`: {first['msg']}, got {quote(first['input'])}") from None


def _names(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The keys of the table at `path` within `model`'s; none where that is no model of its own."""
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
