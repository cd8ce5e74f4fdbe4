"""The outermost layer: every request is checked, counted and logged here, and every answer gets its headers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ea_runtime.serve.http.access import Access
from ea_runtime.serve.http.errors import ApiError, as_api_error

access_log = logging.getLogger("ea.serve.access")

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: requests at work at once; more get 503 with Retry-After
MAX_REQUESTS = 512


class Guard:
    """An ASGI app around `app`. on_answer(route, method, status) is called once for each answer."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        on_answer: Callable[[str, str, int], None],
        max_requests: int = MAX_REQUESTS,
    ) -> None:
        self.app = app
        self.access = access
        self.on_answer = on_answer
        self.max_requests = max_requests
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        self.running += 1
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal.response()(scope, receive, sending)
            else:
                await self.app(scope, receive, sending)
        except Exception as error:
            if status:
                raise
            await as_api_error(error).response()(scope, receive, sending)
        finally:
            self.running -= 1
            self.on_answer(scope.get("ea.route", "other"), scope["method"], status)
            self._log(scope, status, time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if self.running > self.max_requests:
            return ApiError(
                503,
                "the server answers too many requests just now; try again",
                code="busy",
                headers={"Retry-After": "1", "Connection": "close"},
            )
        server = scope.get("server")
        tokens = parse_qs(scope["query_string"].decode("latin-1")).get("token", [None])
        try:
            self.access.check(
                scope["method"], scope["path"], Headers(scope=scope), tokens[0], server[0] if server else None
            )
        except ApiError as error:
            # what a stranger sends is not read, so the connection ends
            error.headers.setdefault("Connection", "close")
            return error
        return None

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        if access_log.isEnabledFor(logging.INFO):
            # without the query: it may hold the token. As it came, escaped: it cannot break the line.
            path = scope.get("raw_path", b"").decode("ascii", "replace")[:200]
            peer = scope["client"][0] if scope.get("client") else "-"
            access_log.info("%s %s %s %d %.0f ms", peer, scope["method"][:20], path, status, seconds * 1e3)
