"""POST /v1/images/generations of the OpenAI API: one picture, made while the client waits."""

from __future__ import annotations

import base64

from starlette.requests import Request
from starlette.responses import Response

from ea_runtime.serve.http import shapes
from ea_runtime.serve.http.bodies import read_fields
from ea_runtime.serve.http.endpoints import Endpoint, answer
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.ids import check_query
from ea_runtime.serve.http.orders import place_order
from ea_runtime.serve.http.service import service_of
from ea_runtime.serve.http.views import file_of
from ea_runtime.serve.http.waiting import ended, require_completed

#: fields that OpenAI's clients send, and the one value that each may have here
_FIXED = {"n": 1, "response_format": "b64_json", "output_format": "png"}
_MAX_USER = 256


async def generate(request: Request) -> Response:
    """A picture."""
    service = service_of(request)
    check_query(request, ())
    fields = await read_fields(request)
    _take_fixed(fields)
    for name in ("num_frames", "seconds", "fps"):
        if fields.get(name) is not None:
            raise ApiError(
                400,
                f"`{name}` is for videos; ask POST /v1/videos for one",
                code="unsupported_parameter",
                param=name,
            )
    job = await place_order(request, {**fields, "num_frames": 1})
    done = require_completed(await ended(request, job))
    place = file_of(service.store, done, "video")
    try:
        picture = await service.call(place.read_bytes)
    except (OSError, AttributeError):
        raise ApiError(404, f"{job.id} was deleted before it was sent", code="gone") from None
    image = shapes.Image(b64_json=base64.b64encode(picture).decode())
    return answer(
        shapes.Images(created=done.created_at, data=[image], size=done.request["size"]),
        headers={"X-EA-Job": job.id},
    )


def _take_fixed(fields: dict[str, object]) -> None:
    """Takes out what has one value here. Raises ApiError for another one."""
    for name, wanted in _FIXED.items():
        value = fields.pop(name, None)
        if value is not None and (value != wanted or isinstance(value, bool)):
            raise ApiError(
                400,
                f"`{name}` must be {wanted!r} here, got {str(value)[:40]!r}",
                code="unsupported_parameter",
                param=name,
            )
    user = fields.pop("user", None)
    if user is not None and not (isinstance(user, str) and len(user) <= _MAX_USER):
        raise ApiError(
            400, f"`user` must be text of at most {_MAX_USER} characters", code="invalid_value", param="user"
        )


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/images/generations",
        generate,
        "Make a picture",
        {200: shapes.Images},
        takes=shapes.ImageOrder,
        errors=(400, 404, 409, 413, 415, 429, 504),
    ),
)
