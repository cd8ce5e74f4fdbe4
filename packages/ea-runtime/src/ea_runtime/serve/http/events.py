"""GET /api/events: server-sent events, one for each change of a job.

`id:` is the store's version, and `Last-Event-ID` resumes there; without it a client first gets the jobs that wait or
are at work and the latest others, so it misses nothing between its list and its first event.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ea_runtime.serve.http.endpoints import Endpoint, Query
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.hub import Change, Hub
from ea_runtime.serve.http.ids import check_query, no_job
from ea_runtime.serve.http.service import Service, service_of
from ea_runtime.serve.http.views import job_view, job_views
from ea_runtime.serve.state import JOB_ID

#: seconds of silence after which a comment shows that the connection lives
BEAT = 15.0
_LATEST = 20
_ALL = 1_000


async def events(request: Request) -> Response:
    """The stream. Ends when the client leaves or the server stops."""
    service, hub = service_of(request), request.app.state.hub
    check_query(request, ("job",))
    job_id = request.query_params.get("job")
    if job_id is not None:
        known = JOB_ID.fullmatch(job_id) and await service.call(service.store.get, job_id)
        if not known:
            raise no_job(job_id)
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    hub.require_room()
    stream = _stream(service, hub, job_id, _version(request.headers.get("last-event-id")))
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _stream(service: Service, hub: Hub, job_id: str | None, since: int | None) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    async with hub.listening(job_id) as listener:
        # first the listener, then the look: a change in between comes twice, never not at all
        try:
            first = await _before(service, hub, job_id, since)
        except ApiError:
            return
        for change in first:
            yield _event(change)
        while not service.stopping.is_set():
            changes = await listener.take(BEAT)
            for change in changes:
                yield _event(change)
            if not changes:
                yield ": still here\n\n"


async def _before(service: Service, hub: Hub, job_id: str | None, since: int | None) -> list[Change]:
    """The events that a new client gets first."""
    if since is not None:
        return [change for change in await hub.since(since) if job_id in (None, change.id)]
    store = service.store

    def look() -> list[Change]:
        version = store.version()
        if job_id is not None:
            job = store.get(job_id)
            return [] if job is None else [Change(job_id, job_view(store, job), version)]
        latest, _ = store.list(_LATEST)
        active, _ = store.list(_ALL, states=("queued", "in_progress"))
        jobs = {job.id: job for job in [*latest, *active]}.values()
        return [Change(view.id, view, version) for view in job_views(store, jobs)]

    return await service.call(look)


def _event(change: Change) -> str:
    if change.view is None:
        return f"event: deleted\nid: {change.version}\ndata: {json.dumps({'id': change.id})}\n\n"
    return f"event: job\nid: {change.version}\ndata: {change.view.model_dump_json()}\n\n"


def _version(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


ENDPOINTS = (
    Endpoint(
        "GET",
        "/api/events",
        events,
        "Follow jobs: server-sent events `job` and `deleted`",
        {200: ("text/event-stream",)},
        query=(Query("job", {"type": "string", "pattern": "^video_[0-9a-f]{32}$"}),),
        errors=(400, 404, 429),
    ),
)
