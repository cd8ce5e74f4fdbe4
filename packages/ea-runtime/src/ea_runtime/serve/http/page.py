"""The page and its files. Names are looked up in a table made at the start, never in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ea_runtime.serve.http.access import COOKIE
from ea_runtime.serve.http.endpoints import Endpoint
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.service import service_of

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "png": "image/png",
    "webp": "image/webp",
    "ico": "image/x-icon",
    "woff2": "font/woff2",
}
_INDEX = "index.html"


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file of the page. tag: hash of its bytes."""

    body: bytes
    media_type: str
    tag: str


def read_page() -> dict[str, StaticFile]:
    """The files of serve/page/ by name, those of its folders as "folder/name"."""
    found: dict[str, StaticFile] = {}
    waiting = [("", resources.files("ea_runtime.serve").joinpath("page"))]
    while waiting:
        prefix, folder = waiting.pop()
        if not folder.is_dir():
            continue
        for one in folder.iterdir():
            suffix = one.name.rpartition(".")[2]
            if one.is_dir():
                waiting.append((f"{prefix}{one.name}/", one))
            elif suffix in _TYPES:
                body = one.read_bytes()
                tag = hashlib.sha256(body).hexdigest()[:32]
                found[prefix + one.name] = StaticFile(body, _TYPES[suffix], tag)
    return found


async def index(request: Request) -> Response:
    """The page; with a token in the address, first the cookie and the address without it."""
    if request.query_params.get("token") is not None:
        response = RedirectResponse("/", 303)
        token = service_of(request).access.token
        if token is not None:  # the guard has compared it
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict", max_age=30 * 86400)
        return response
    return _answer(request, _INDEX)


async def static(request: Request) -> Response:
    """A file of the page."""
    return _answer(request, request.path_params["name"])


def _answer(request: Request, name: str) -> Response:
    files: Mapping[str, StaticFile] = request.app.state.page
    file = files.get(name)
    if file is None:
        raise ApiError(404, f"the page has no file {name[:60]!r}")
    headers = {"ETag": f'"{file.tag}"', "Cache-Control": "no-cache"}
    if f'"{file.tag}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.media_type)


PAGE_ENDPOINTS = (
    Endpoint("GET", "/", index, "The page", {200: ("text/html",)}),
    Endpoint(
        "GET", "/static/{name:path}", static, "A file of the page", {200: ("application/octet-stream",)}
    ),
)
