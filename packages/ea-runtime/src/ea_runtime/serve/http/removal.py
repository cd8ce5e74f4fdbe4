"""The deletion of a job, for both APIs."""

from __future__ import annotations

from starlette.requests import Request

from ea_runtime.serve.http.bodies import require_no_body
from ea_runtime.serve.http.ids import check_query, no_job, require_job
from ea_runtime.serve.http.service import service_of


async def remove_job(request: Request) -> str:
    """Removes the job that an address names, and its files; one at work stops. Its id. Raises ApiError."""
    service = service_of(request)
    check_query(request, ())
    await require_no_body(request)
    job = await require_job(service, request.path_params["id"])
    if await service.call(service.store.delete, job.id) is None:
        raise no_job(job.id)
    return job.id
