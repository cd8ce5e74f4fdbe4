"""The state that all handlers share: store, catalogue, limits, states of the workers, access."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from starlette.requests import Request

from ea_runtime.serve.catalogue import Catalogue
from ea_runtime.serve.crew import Loading, Worker
from ea_runtime.serve.http.access import Access
from ea_runtime.serve.jobs import JobStore
from ea_runtime.serve.orders import Limits
from ea_runtime.serve.state import StateFolder

P = ParamSpec("P")
T = TypeVar("T")

_CLIENT = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: threads that wait for SQLite and the disk
_THREADS = 8


@dataclass
class Service:
    """One running server.

    workers: called for each /healthz. limits: caps on a request.
    loading: the form in which workers hold models, for plans.
    stopping: set when the server drains; whoever waits for something gives up then.
    """

    store: JobStore
    state: StateFolder
    catalogue: Catalogue
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    workers: Callable[[], Sequence[Worker]] = tuple
    loading: Loading = field(default_factory=Loading)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_THREADS, thread_name_prefix="ea-store")
    )

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a function that waits for SQLite or the disk, from a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(function, *args, **kwargs))


def service_of(request: Request) -> Service:
    """The service that a request belongs to."""
    return request.app.state.service


def client_of(request: Request) -> str:
    """Who asks, for turns in the queue: the header X-EA-Client, otherwise the peer's address."""
    named = request.headers.get("x-ea-client", "")
    if _CLIENT.fullmatch(named):
        return named
    return request.client.host if request.client else "unknown"
