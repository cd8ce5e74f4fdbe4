"""Bodies of requests: read while they are counted, and parsed only then.

Caps come first: a body that says that it is too large is refused before a byte of it is read.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ea_runtime.serve.http.errors import ApiError

#: a request: two prompts of the largest size and some settings
MAX_JSON = 256 << 10
MAX_DEPTH = 16
MAX_FIELDS = 64
#: an output of ea, to read from it how it was made
MAX_UPLOAD = 64 << 20
#: bytes of an upload that are kept in memory before it goes to the disk
_IN_MEMORY = 64 << 10
#: seconds in which a body must have arrived
PATIENCE = 60.0

_WHOLE = ("num_frames", "seed", "steps", "n", "window")
_NUMBERS = ("fps", "guidance", "scale", "strength")


async def read_fields(request: Request) -> dict[str, Any]:
    """The fields of a request, from JSON. Raises ApiError."""
    kind = _content_type(request)
    if kind == "application/json":
        return parse_object(await _read(request, MAX_JSON))
    raise ApiError(415, f"the Content-Type must be application/json, got {kind[:80]!r}")


@asynccontextmanager
async def reading_fields(request: Request, *, files: int) -> AsyncGenerator[dict[str, Any], None]:
    """The fields of a request from JSON, or from a form with up to `files` files, which end with the block.

    Raises ApiError.
    """
    kind = _content_type(request)
    if kind == "application/json":
        yield parse_object(await _read(request, MAX_JSON))
    elif kind == "multipart/form-data":
        async with read_form(request, MAX_UPLOAD, files) as items:
            yield fields_of_form(items)
    else:
        raise ApiError(
            415, f"the Content-Type must be application/json or multipart/form-data, got {kind[:80]!r}"
        )


async def read_loose_json(request: Request) -> dict[str, Any]:
    """The fields of a JSON body whose Content-Type may be missing, as EasyAnimate's own clients send it."""
    if "content-type" in request.headers and _content_type(request) != "application/json":
        raise ApiError(415, "the Content-Type must be application/json")
    return parse_object(await _read(request, MAX_JSON))


async def require_no_body(request: Request) -> None:
    """Raises ApiError if a request that takes no body has one."""
    if await _read(request, MAX_JSON) not in (b"", b"{}"):
        raise ApiError(400, "this address takes no body", code="unexpected_body")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body: no duplicate keys, no NaN, no half characters, bounded depth. Raises ApiError."""
    try:
        value = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # also of text that is not UTF-8
        raise ApiError(400, f"the body is no valid JSON: {str(error)[:120]}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"the body must be a JSON object, got {_json_type(value)}", code="invalid_json")
    _check_tree(value)
    return value


@asynccontextmanager
async def read_form(
    request: Request, limit: int, files: int = 1
) -> AsyncGenerator[list[tuple[str, str | UploadFile]], None]:
    """The fields and files of a multipart form, in their order; files are on the disk and end with the block.

    files: how many there may be. Raises ApiError.
    """
    _check_length(request, limit)
    parser = MultiPartParser(
        request.headers,
        _chunks(request, limit),
        max_files=files,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_JSON,
    )
    parser.spool_max_size = _IN_MEMORY
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError(400, f"the form cannot be read: {error.message}", code="invalid_form") from None
    except (ValueError, LookupError, AttributeError) as error:  # of a header that makes no sense
        raise ApiError(400, f"the form cannot be read: {str(error)[:120]}", code="invalid_form") from None
    try:
        yield form.multi_items()
    finally:
        await form.close()


def fields_of_form(items: list[tuple[str, str | UploadFile]]) -> dict[str, Any]:
    """A form's fields with the types that JSON would have.

    Lists of objects come as clients write them: `loras[][name]`, `loras[][scale]`, or JSON in `loras`.
    Raises ApiError.
    """
    fields: dict[str, Any] = {}
    columns: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for name, value in items:
        if isinstance(value, UploadFile):
            if name in fields:
                raise ApiError(400, f"the field {name[:60]!r} is there twice", code="invalid_form")
            fields[name] = value
            continue
        base, opened, rest = name.partition("[")
        if opened:
            key = rest.replace("]", "").replace("[", "")
            columns[base][key].append(_typed(key, value))
        elif name in fields:
            raise ApiError(400, f"the field {name[:60]!r} is there twice", code="invalid_form")
        else:
            fields[name] = _typed(name, value)
    for base, keys in columns.items():
        if base in fields:
            raise ApiError(400, f"the field {base[:60]!r} is there twice", code="invalid_form")
        fields[base] = _rows(base, keys)
    _check_tree(fields)
    return fields


def _rows(base: str, keys: Mapping[str, list[Any]]) -> list[Any]:
    if len({len(column) for column in keys.values()}) != 1:
        names = " and ".join(f"{base}[][{key}]" for key in keys)
        raise ApiError(
            400, f"the form must have {names[:120]} equally often", code="invalid_form", param=base
        )
    count = len(next(iter(keys.values())))
    return [{key: column[i] for key, column in keys.items()} for i in range(count)]


def _typed(name: str, text: str) -> Any:
    """A form's text as JSON would have it; what does not fit stays text, and is refused with the rest."""
    try:
        if name in _WHOLE:
            return int(text)
        if name in _NUMBERS:
            return float(text)
        if name == "loras":
            return json.loads(text)
    except (ValueError, RecursionError):
        return text
    if name in ("smooth", "loop") and text in ("true", "false"):
        return text == "true"
    return text


def _content_type(request: Request) -> str:
    found = request.headers.getlist("content-type")
    if len(found) > 1:
        raise ApiError(400, "a request has one Content-Type", code="bad_header")
    return found[0].partition(";")[0].strip().lower() if found else ""


async def _read(request: Request, limit: int) -> bytes:
    _check_length(request, limit)
    return b"".join([chunk async for chunk in _chunks(request, limit)])


def _check_length(request: Request, limit: int) -> None:
    said = request.headers.get("content-length", "0")
    if not said.isdecimal() or int(said) > limit:
        raise _too_large(limit)


async def _chunks(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body in pieces; ends with an error where it gets too large or too slow."""
    size = 0
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                yield chunk
    except TimeoutError:
        raise ApiError(
            408, "the body took too long to arrive", code="timeout", headers={"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "the body ended early", code="invalid_request") from None


def _too_large(limit: int) -> ApiError:
    size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
    return ApiError(413, f"a body here may have {size}", headers={"Connection": "close"})


def _too_deep() -> ApiError:
    return ApiError(400, f"JSON may be {MAX_DEPTH} levels deep here", code="invalid_json")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:60]!r} is there twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _json_type(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _check_tree(value: Any) -> None:
    """Raises ApiError for what is too deep, and for text that cannot be written as UTF-8."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                deeper += one.keys()
                deeper += one.values()
            elif isinstance(one, list):
                deeper += one
            elif isinstance(one, str) and not one.isascii():
                _check_text(one)
            elif isinstance(one, float) and one - one != 0:
                raise ApiError(400, "a number is too large", code="invalid_json")
        if not deeper:
            return
        level = deeper
    raise _too_deep()


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError(400, "a text has half a character (a lone surrogate)", code="invalid_json") from None
