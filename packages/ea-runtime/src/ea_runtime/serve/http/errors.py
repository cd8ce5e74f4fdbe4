"""Errors as the API gives them: always {"error": {"message", "type", "param", "code"}}, whatever went wrong."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ea_runtime.errors import UserError
from ea_runtime.serve.database import StoreError
from ea_runtime.serve.jobs import QueueFull
from ea_runtime.serve.orders import Refused

_log = logging.getLogger("ea.serve")

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
#: seconds that a client should wait after a fault that may pass
_SOON = 1
_CODES = {
    400: "invalid_request",
    401: "invalid_token",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}


class ApiError(Exception):
    """An answer that is an error.

    code: for programs, lower case with underscores. param: the argument at fault. headers: more of them.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = " ".join(message.split())
        self.code = code or _CODES.get(status, "error")
        self.param = param
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """The answer itself."""
        body = error_body(self.status, self.message, self.code, self.param)
        return JSONResponse(body, self.status, self.headers)


def error_body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error, in the shape that OpenAI's clients read."""
    kind = "invalid_request_error"
    if status in (401, 403):
        kind = "authentication_error" if status == 401 else "permission_error"
    elif status == 429:
        kind = "rate_limit_error"
    elif status >= 500:
        kind = "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def as_api_error(error: Exception) -> ApiError:
    """The answer to an exception; a fault of ours becomes a 500 that shows nothing of the inside, and is logged."""
    match error:
        case ApiError():
            return error
        case Refused():
            return ApiError(400, str(error), code=error.code, param=error.param)
        case QueueFull():
            wait = max(1, math.ceil(error.retry_after))
            return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(wait)})
        case StoreError():
            if "full" in str(error):
                return ApiError(507, "the server's disk is full; free some space there", code="disk_full")
            _log.error("%s", error)
            return ApiError(
                503,
                "the jobs cannot be read or written just now; try again",
                code="store_busy",
                headers={"Retry-After": str(_SOON)},
            )
        case UserError():
            return ApiError(400, str(error), code="invalid_value")
        case HTTPException():
            return ApiError(error.status_code, _words(error), headers=error.headers)
        case OSError() if error.errno in _FULL:
            return ApiError(507, "the server's disk is full; free some space there", code="disk_full")
        case _:
            _log.error("a fault of ea", exc_info=error)
            return ApiError(500, "a fault of ea; its log has the details", code="internal_error")


def _words(error: HTTPException) -> str:
    if error.status_code == 404:
        return "there is nothing at this address; GET /openapi.json lists the addresses"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return f"this address does not take that method; it takes {allowed or 'others'}"
    return error.detail or HTTPStatus(error.status_code).phrase
