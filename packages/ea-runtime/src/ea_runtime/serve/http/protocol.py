"""HTTP/1.1 connections that cannot be held for nothing: uvicorn's protocol with time limits.

uvicorn limits neither how long a client takes to send a request nor how long it takes to read an answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ea_runtime.serve.http.errors import ApiError

#: seconds: for a request to begin and its headers to arrive; without a byte of an answer being accepted
HEADER_SECONDS, WRITE_SECONDS = 10.0, 60.0
#: bytes that are read and dropped after an answer that came before the whole body
MAX_DROPPED = 4 << 20
MAX_CONNECTIONS = 1024
_LOOK = 2.0


class Protocol(H11Protocol):
    """One connection."""

    _watch: asyncio.TimerHandle | None = None
    _idle_since = 0.0
    _stuck: tuple[int, float] | None = None  # bytes that wait to be accepted, since when
    _dropped = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._idle_since = self.loop.time()
        self._watch = self.loop.call_later(_LOOK, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_answered and self.conn.their_state is h11.SEND_BODY:
            self._dropped += len(data)
            if self._dropped > MAX_DROPPED:
                self.transport.abort()
                return
        super().data_received(data)

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, in the shape of all errors, and closes the connection."""
        error = ApiError(400, "this is no HTTP/1.1 request that can be read", code="bad_request").response()
        headers = [*error.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(error.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def _is_answered(self) -> bool:
        """True while no request of this connection waits for its answer."""
        return self.cycle is None or self.cycle.response_complete

    def _look(self) -> None:
        now = self.loop.time()
        is_idle = self._is_answered and now - self._idle_since > HEADER_SECONDS
        if is_idle or self._is_stuck(now):
            self.transport.abort()
            return
        self._watch = self.loop.call_later(_LOOK, self._look)

    def _is_stuck(self, now: float) -> bool:
        """True if the client has accepted no byte for too long while some wait."""
        size = self.transport.get_write_buffer_size()
        if size == 0:
            self._stuck = None
        elif self._stuck is None or self._stuck[0] != size:
            self._stuck = size, now
        return self._stuck is not None and now - self._stuck[1] > WRITE_SECONDS
