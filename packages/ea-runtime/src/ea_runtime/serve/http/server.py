"""The server: a socket, uvicorn, and an end that leaves nothing half done."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from ea_runtime.errors import UserError
from ea_runtime.serve.http.app import App
from ea_runtime.serve.http.protocol import Protocol

_BACKLOG = 512
#: seconds that answers at work have to end when the server stops
_GRACE = 5


def open_socket(host: str, port: int) -> socket.socket:
    """A bound socket. Raises UserError for a port that is in use and an address that is not this machine's."""
    where = f"{host}:{port}" if ":" not in host else f"[{host}]:{port}"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise UserError(f"`host` must be an address or name of this machine, got {host[:80]!r}") from error
    try:
        if sys.platform != "win32":  # there it would let two servers share the port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"`port` {port} is in use on {host}; stop what uses it, or give another: --port {port + 1}"
            ) from error
        if error.errno == errno.EACCES:
            raise UserError(f"`port` {port} is not open to you; give one from 1024 up") from error
        raise UserError(f"{where} cannot be used: {error.strerror or error}; give another --host") from error
    return made


def make_server(app: App, on_ready: Callable[[], None] | None = None) -> uvicorn.Server:
    """The server; `.run(sockets=[socket])` answers requests until SIGTERM or Ctrl-C, a second one ends it at once.

    on_ready: called when the first request can be answered.
    """
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=_GRACE,
    )
    return _Server(config, app, on_ready)


class _Server(uvicorn.Server):
    """uvicorn's, except that a signal ends it in order, and with it everyone who waits for a job."""

    def __init__(self, config: uvicorn.Config, app: App, on_ready: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._app = app
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # uvicorn's own raises the signals again at the end, which would end the process before its workers are drained
        if threading.current_thread() is not threading.main_thread():
            yield  # signals go to the main thread alone
            return
        names = [signal.SIGINT, signal.SIGTERM, *([signal.SIGBREAK] if sys.platform == "win32" else [])]
        before = {name: signal.signal(name, self.handle_exit) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_ready is not None and not self.should_exit:
            self._on_ready()

    async def shutdown(self, sockets: Any = None) -> None:
        self._app.stop()
        await super().shutdown(sockets)
