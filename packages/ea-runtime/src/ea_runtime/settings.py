"""Typed options from tables and files: errors of pydantic and TOML become one line."""

from __future__ import annotations

import datetime
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ea_runtime.errors import UserError, nearest
from ea_runtime.files.safe import plain, quote
from ea_runtime.files.texts import read_text

M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], table: Any, where: str, hint: str = "") -> M:
    """`model` from a table. Raises UserError, one line, naming the key, what was expected and what came.

    where: the file and table, in front of the line. hint: what to do, behind it.
    """
    try:
        return model.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        location = first["loc"]
        key = plain(".".join(str(part) for part in location)) or "table"
        if first["type"] == "extra_forbidden":
            known = _names(model, location[:-1])
            hint = nearest(str(location[-1]), known) or f"; there are: {', '.join(known)}"
            raise UserError(f"{where}: unknown key `{key}`{hint}") from None
        if first["type"] == "missing":
            raise UserError(f"{where}: key `{key}` is missing{hint}") from None
        is_value = first["type"] == "model_type"  # pydantic's message names the class
        message = "must be a table of keys" if is_value else first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: `{key}`: {message}, got {quote(first['input'])}{hint}") from None


def _names(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The keys of the table at `path` within `model`'s; none if that is no model."""
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def read_toml(path: Path, name: str) -> dict[str, Any]:
    """The tables of a TOML file. name: the argument that gave it. Raises UserError, one line."""
    text = ""
    try:
        text = read_text(path)
        tables = tomllib.loads(text)
    except FileNotFoundError:
        raise UserError(f"`{name}` must be a TOML file, got {str(path)!r}, which is not there") from None
    except OSError as error:
        raise UserError(f"`{name}` {str(path)!r} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"`{name}` {path.name} is not valid TOML: {error}{_hint(text, error)}") from error
    _check_paths(tables, name, path.name)
    return tables


_WINDOWS = "in TOML a path of Windows goes between single quotes: 'C:\\set'"
#: Endings of the keys whose values are files and folders.
_PATH_KEYS = ("path", "root", "out", "folder", "parts", "model", "lora", "weights")
_ESCAPED = re.compile(r"[\b\t\n\f\r]")


def _hint(text: str, error: Exception) -> str:
    """The remedy, if the line of an error has a backslash between double quotes."""
    line = re.search(r"at line (\d+)", str(error))
    lines = text.split("\n")
    found = lines[int(line[1]) - 1] if line and int(line[1]) <= len(lines) else ""
    return f"; {_WINDOWS}" if re.search(r'".*\\', found) else ""


def _check_paths(table: dict[str, Any], name: str, file: str, prefix: str = "") -> None:
    r"""Raises UserError for a path with a control character: the \t and \n of "C:\train\new" are valid TOML."""
    for key, value in table.items():
        if isinstance(value, dict):
            _check_paths(value, name, file, f"{prefix}{key}.")
        elif isinstance(value, str) and key.endswith(_PATH_KEYS) and _ESCAPED.search(value):
            raise UserError(f"`{name}` {file}: `{prefix}{key}` is {value!r}, which is no path; {_WINDOWS}")


def read_setting(text: str) -> tuple[list[str], Any]:
    """Keys and value of a `--set table.key=value`: no keys if it does not read so.

    A value that is no TOML is a string, and so is a date: no option is one, but a folder may be called so.
    """
    key, equals, raw = text.partition("=")
    keys = key.strip().split(".")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = raw
    is_date = isinstance(value, datetime.date | datetime.time)
    return keys if equals and all(keys) else [], raw if is_date else value


def put_setting(table: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    """Puts a value into a table of tables, made where missing. text: the whole `--set`, for the error."""
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UserError(f"`--set {text}`: {key!r} is a value, not a table")
    table[keys[-1]] = value


def missing_path(component: str, option: str, value: str, what: str) -> list[str]:
    """One line if the path in an option is not set or does not exist, else an empty list."""
    if not value:
        return [f"{component}: `{option}` is not set; give the local path of {what}"]
    if not Path(value).expanduser().exists():
        return [f"{component}: `{option}`: {value!r} does not exist; it should be {what}"]
    return []
