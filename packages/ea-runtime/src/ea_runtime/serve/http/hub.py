"""Changes of jobs, from the store to everyone who listens.

One task asks the store for what changed; each listener has the latest view of each changed job waiting, so one that
reads slowly misses steps in between and no memory grows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.service import Service
from ea_runtime.serve.http.shapes import JobView
from ea_runtime.serve.http.views import job_views
from ea_runtime.serve.jobs import Job, StoreError

_log = logging.getLogger("ea.serve")

#: seconds between two looks while somebody listens, and while nobody does
_OFTEN, _SELDOM = 0.15, 1.0
MAX_LISTENERS = 128


class Change(NamedTuple):
    """A changed job, or (view None) a deleted one."""

    id: str
    view: JobView | None
    version: int


class Listener:
    """The events that one client has not read yet. job_id: of this job alone."""

    def __init__(self, job_id: str | None) -> None:
        self.job_id = job_id
        self._waiting: dict[str, Change] = {}
        self._is_there = asyncio.Event()

    def put(self, changes: Iterable[Change]) -> None:
        """Notes changes; a later one of a job replaces an earlier one."""
        for change in changes:
            if self.job_id in (None, change.id):
                self._waiting.pop(change.id, None)  # its place is by its last change
                self._waiting[change.id] = change
        if self._waiting:
            self._is_there.set()

    def wake(self) -> None:
        """Ends a wait, with nothing."""
        self._is_there.set()

    async def take(self, seconds: float) -> list[Change]:
        """The waiting events, in the order of versions; none after `seconds` without any."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_there.wait()
        found = list(self._waiting.values())
        self._waiting.clear()
        self._is_there.clear()
        return found


class Hub:
    """The task that asks, and its listeners. on_jobs is called with every batch of changed jobs."""

    def __init__(self, service: Service, on_jobs: Callable[[list[Job]], None]) -> None:
        self._service = service
        self._on_jobs = on_jobs
        self._listeners: set[Listener] = set()
        self._poke = asyncio.Event()
        self.version = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Within the block changes are passed on."""
        self.version = await self._service.call(self._service.store.version)
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def require_room(self) -> None:
        """Raises ApiError (429) if there are too many listeners."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise ApiError(
                429,
                f"{MAX_LISTENERS} clients listen already; ask GET /api/jobs instead",
                code="too_many_listeners",
                headers={"Retry-After": "5"},
            )

    @asynccontextmanager
    async def listening(self, job_id: str | None = None) -> AsyncIterator[Listener]:
        """A listener to every change from now on. Raises ApiError (429) if there are too many."""
        self.require_room()
        listener = Listener(job_id)
        self._listeners.add(listener)
        self._poke.set()
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def stop(self) -> None:
        """Wakes all listeners, which then see that the server stops."""
        for listener in self._listeners:
            listener.wake()

    async def since(self, version: int) -> list[Change]:
        """The changes after `version`, for one client that was away."""
        store = self._service.store

        def look() -> list[Change]:
            jobs, deleted, now = store.changes(version)
            gone = [Change(one, None, now) for one in deleted]
            return gone + [Change(view.id, view, now) for view in job_views(store, jobs)]

        return await self._service.call(look)

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
            except StoreError as error:
                _log.warning("%s", error)
            except Exception:
                _log.exception("a fault of ea: changes of jobs cannot be passed on")
            self._poke.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_OFTEN if self._listeners else _SELDOM):
                    await self._poke.wait()

    async def _look(self) -> None:
        store, since = self._service.store, self.version
        jobs, deleted, version = await self._service.call(store.changes, since)
        if version == since:
            return
        self._on_jobs(jobs)
        if self._listeners:
            views = await self._service.call(job_views, store, jobs) if jobs else []
            changes = [Change(one, None, version) for one in deleted]
            changes += [Change(view.id, view, version) for view in views]
            for listener in self._listeners:
                listener.put(changes)
        self.version = version
