"""GET /openapi.json: the API's own description, made of the endpoints and the shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ea_runtime.serve.http import shapes
from ea_runtime.serve.http.endpoints import Endpoint
from ea_runtime.serve.http.ids import check_query

_SCHEMA = "#/components/schemas/{model}"
#: what any answer may be: wrong framing or Host, no token, a page from elsewhere, a fault, too busy, a full disk
_ANYWHERE = (400, 401, 403, 500, 503, 507)
_PARAMETERS = {
    "id": {"type": "string", "pattern": "^video_[0-9a-f]{32}$"},
    "name": {"type": "string", "minLength": 1, "maxLength": 128},
}


async def openapi(request: Request) -> Response:
    """The document."""
    check_query(request, ())
    return JSONResponse(request.app.state.openapi)


ENDPOINTS = (
    Endpoint(
        "GET",
        "/openapi.json",
        openapi,
        "Get this document",
        {200: ("application/json",)},
        errors=(400,),
    ),
)


def document(endpoints: Iterable[Endpoint], *, has_token: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document of some endpoints. has_token: the server asks for one."""
    listed = list(endpoints)
    models: list[Any] = [shapes.Error]
    for one in listed:
        models += [shape for shape in one.gives.values() if isinstance(shape, type)]
        models += [one.takes] if one.takes else []
    unique = list(dict.fromkeys(models))
    names, definitions = models_json_schema(
        [(one, "serialization" if one not in {e.takes for e in listed} else "validation") for one in unique],
        ref_template=_SCHEMA,
    )
    references = {model: schema for (model, _), schema in names.items()}
    paths: dict[str, Any] = {}
    for one in listed:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", one.path)
        paths.setdefault(path, {})[one.method.lower()] = _operation(
            one, path, references, definitions["$defs"], has_token
        )
    components: dict[str, Any] = {"schemas": definitions["$defs"]}
    if has_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ea serve",
            "version": version("ea-runtime"),
            "description": "Text to video: OpenAI's videos API, and the API of the page.",
        },
        "paths": paths,
        "components": components,
    }


def _operation(
    one: Endpoint, path: str, references: dict[Any, Any], definitions: dict[str, Any], has_token: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": one.summary,
        "operationId": f"{one.method.lower()}{re.sub('[^A-Za-z0-9]+', '_', path)}".rstrip("_"),
        "responses": {},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PARAMETERS[name]}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    parameters += [{"name": q.name, "in": "query", "required": False, "schema": q.schema} for q in one.query]
    if parameters:
        found["parameters"] = parameters
    if has_token and not one.is_open:
        found["security"] = [{"token": []}]
    if one.forms == "only":
        found["requestBody"] = _body({"multipart/form-data": {"schema": _FILE}})
    elif one.takes is not None:
        contents = {"application/json": {"schema": references[one.takes]}}
        if one.forms == "also":
            fields = definitions[one.takes.__name__]
            files = {name: {"type": "string", "format": "binary"} for name in one.files}
            contents["multipart/form-data"] = {
                "schema": {**fields, "properties": {**fields["properties"], **files}}
            }
        found["requestBody"] = _body(contents)
    for status, given in one.gives.items():
        contents = (
            {"application/json": {"schema": references[given]}}
            if isinstance(given, type)
            else {kind: {"schema": {}} for kind in given}
        )
        found["responses"][str(status)] = _response(status, contents)
    error = {"application/json": {"schema": references[shapes.Error]}}
    for status in sorted({*one.errors, *_ANYWHERE}):
        found["responses"].setdefault(str(status), _response(status, error))
    return found


_FILE = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary"}},
    "required": ["file"],
    "additionalProperties": False,
}


def _body(contents: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": contents}


def _response(status: int, contents: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if contents:
        found["content"] = contents
    if status in (429, 503):
        found["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds."}}
    return found
