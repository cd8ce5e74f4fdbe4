"""Waiting for a job within one request, for clients whose API knows no jobs."""

from __future__ import annotations

import time

from starlette.requests import Request

from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.service import service_of
from ea_runtime.serve.jobs import Job

#: seconds after which the answer is that it takes too long; the job continues
PATIENCE = 3600.0
_LOOK = 1.0


async def ended(request: Request, job: Job) -> Job:
    """The job once it has ended.

    A client that leaves takes its job with it. Raises ApiError: 404 if it was deleted, 503 if the server stops, 504
    after an hour.
    """
    service, hub = service_of(request), request.app.state.hub
    deadline = time.monotonic() + PATIENCE
    async with hub.listening(job.id) as listener:
        while True:
            found = await service.call(service.store.get, job.id)
            if found is None:
                raise ApiError(404, f"{job.id} was deleted before it was ready", code="job_not_found")
            if found.has_ended:
                return found
            if service.stopping.is_set():
                raise ApiError(
                    503,
                    f"the server stops; {job.id} continues at its next start",
                    code="server_stops",
                    headers={"Retry-After": "30"},
                )
            if time.monotonic() > deadline:
                raise ApiError(504, f"{job.id} takes too long; ask for it later", code="timeout")
            if await request.is_disconnected():
                await service.call(service.store.delete, job.id)
                raise ApiError(400, "the client left")
            await listener.take(_LOOK)


def require_completed(job: Job) -> Job:
    """The job as it is. Raises ApiError for one that failed or was cancelled."""
    if job.state == "cancelled":
        raise ApiError(409, f"{job.id} was cancelled", code="cancelled")
    if job.state != "completed":
        raise ApiError(500, job.error_message or f"{job.id} failed", code=job.error_code or "failed")
    return job
