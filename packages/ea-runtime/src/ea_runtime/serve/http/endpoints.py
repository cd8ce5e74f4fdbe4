"""One entry for each address and method: the routes and the OpenAPI document are both made of these."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ea_runtime.serve.http.shapes import Shape

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Query:
    """A query parameter. schema: of JSON Schema."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a method.

    gives: status -> the shape of the answer, or its content types. takes: the shape of the body. forms: the body may be
    a form as well; "only": it must be one, with a file. files: names of those that a
    form may have besides. errors: statuses of errors besides those that any answer may
    have.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Handler
    summary: str
    gives: Mapping[int, type[Shape] | tuple[str, ...]]
    takes: type[Shape] | None = None
    forms: Literal["no", "also", "only"] = "no"
    files: tuple[str, ...] = ()
    query: tuple[Query, ...] = ()
    errors: tuple[int, ...] = ()
    is_open: bool = field(default=False)


def answer(shape: Shape, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A shape as JSON."""
    return JSONResponse(shape.model_dump(mode="json", by_alias=True), status, headers)


def routes(endpoints: Iterable[Endpoint]) -> list[Route]:
    """Starlette's routes: one for each address, so that 405 names all of its methods."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for one in endpoints:
        by_path.setdefault(one.path, {})[one.method] = one
    return [
        Route(path, _dispatch(path, methods), methods=list(methods), name=path)
        for path, methods in by_path.items()
    ]


def _dispatch(path: str, methods: Mapping[str, Endpoint]) -> Handler:
    async def handle(request: Request) -> Response:
        request.scope["ea.route"] = (
            path  # for metrics: an address as it is written here, of which there are few
        )
        method = "GET" if request.method == "HEAD" else request.method
        return await methods[method].handler(request)

    return handle
