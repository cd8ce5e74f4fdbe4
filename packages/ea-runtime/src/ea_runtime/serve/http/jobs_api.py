"""The page's API of jobs: /api/jobs and what is beneath it."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ea_runtime.generation.inputs import INPUTS
from ea_runtime.serve.http import shapes
from ea_runtime.serve.http.bodies import reading_fields, require_no_body
from ea_runtime.serve.http.contents import file_answer
from ea_runtime.serve.http.endpoints import Endpoint, Query, answer
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.ids import check_query, no_job, page_of, require_job
from ea_runtime.serve.http.openai_videos import LIST_QUERY
from ea_runtime.serve.http.picture_orders import place_picture_order
from ea_runtime.serve.http.removal import remove_job
from ea_runtime.serve.http.service import service_of
from ea_runtime.serve.http.views import file_of, job_view, job_views
from ea_runtime.serve.jobs import Job
from ea_runtime.serve.orders import PICTURES

#: parts of a sidecar that say where things are on this disk
_PLACES = ("output", "file", "bundle", "path", *INPUTS)


async def create(request: Request) -> Response:
    """A new job."""
    check_query(request, ())
    async with reading_fields(request, files=len(PICTURES)) as fields:
        job = await place_picture_order(request, fields)
    return answer(await _view(request, job), 201)


async def list_jobs(request: Request) -> Response:
    """A page of jobs."""
    service = service_of(request)
    page = await page_of(request, service)
    store = service.store
    jobs, has_more = await service.call(store.list, page.limit, page.after, page.order)
    views = await service.call(job_views, store, jobs)
    return answer(shapes.JobList(jobs=views, has_more=has_more))


async def retrieve(request: Request) -> Response:
    """One job."""
    check_query(request, ())
    job = await require_job(service_of(request), request.path_params["id"])
    return answer(await _view(request, job))


async def cancel(request: Request) -> Response:
    """Ends a job that waits, and asks one at work to stop."""
    service = service_of(request)
    check_query(request, ())
    await require_no_body(request)
    job = await require_job(service, request.path_params["id"])
    after = await service.call(service.store.cancel, job.id)
    if after is None:
        raise no_job(job.id)
    return answer(await _view(request, after))


async def delete(request: Request) -> Response:
    """Removes a job and its files."""
    return answer(shapes.JobDeleted(id=await remove_job(request)))


async def preview(request: Request) -> Response:
    """The latest picture of a job at work."""
    service = service_of(request)
    check_query(request, ("v",))
    job = await require_job(service, request.path_params["id"])
    place = service.state.preview(job.id)
    try:
        changed = (await service.call(place.stat)).st_mtime_ns
    except OSError:
        raise ApiError(404, f"{job.id} has no preview now", code="not_ready") from None
    return await file_answer(request, service, place, "image/webp", tag=f"{changed:x}")


async def image(request: Request) -> Response:
    """The picture that a job starts with."""
    return await _picture(request, "image")


async def image_end(request: Request) -> Response:
    """The picture that a job ends with."""
    return await _picture(request, "image_end")


async def _picture(request: Request, name: str) -> Response:
    service = service_of(request)
    check_query(request, ())
    job = await require_job(service, request.path_params["id"])
    if name not in job.request.get("pictures", ()):
        raise ApiError(404, f"{job.id} was made without {name}", code="not_found")
    place = service.state.pictures(job.id) / f"{name}.png"
    # a job's pictures never change
    return await file_answer(request, service, place, "image/png", tag=f"{job.id}-{name}")


async def recipe(request: Request) -> Response:
    """The record of how a completed job was made, without places on this disk."""
    service = service_of(request)
    check_query(request, ())
    job = await require_job(service, request.path_params["id"])
    place = file_of(service.store, job, "sidecar")
    if job.state != "completed" or place is None:
        raise ApiError(
            404, f"{job.id} is {job.state}; its recipe is there when it is completed", code="not_ready"
        )
    try:
        record = json.loads(await service.call(place.read_text, encoding="utf-8"))
    except (OSError, ValueError):
        raise ApiError(404, "this file is gone", code="gone") from None
    name = f'attachment; filename="{job.id}.json"'
    return JSONResponse(_without_places(record), headers={"Content-Disposition": name})


def _without_places(value: Any) -> Any:
    """A record in which paths are cut to their names."""
    if isinstance(value, dict):
        return {
            key: _last_part(one)
            if key in ("name", *_PLACES) and isinstance(one, str)
            else _without_places(one)
            for key, one in value.items()
        }
    return [_without_places(one) for one in value] if isinstance(value, list) else value


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


async def _view(request: Request, job: Job) -> shapes.JobView:
    service = service_of(request)
    return await service.call(job_view, service.store, job)


ENDPOINTS = (
    Endpoint(
        "POST",
        "/api/jobs",
        create,
        "Ask for a video or, with num_frames 1, a picture",
        {201: shapes.JobView},
        takes=shapes.JobOrder,
        forms="also",
        files=tuple(PICTURES.values()),
        errors=(400, 413, 415, 429),
    ),
    Endpoint(
        "GET", "/api/jobs", list_jobs, "List jobs", {200: shapes.JobList}, query=LIST_QUERY, errors=(400,)
    ),
    Endpoint("GET", "/api/jobs/{id}", retrieve, "Get a job", {200: shapes.JobView}, errors=(400, 404)),
    Endpoint(
        "DELETE", "/api/jobs/{id}", delete, "Delete a job", {200: shapes.JobDeleted}, errors=(400, 404, 413)
    ),
    Endpoint(
        "POST", "/api/jobs/{id}/cancel", cancel, "Cancel a job", {200: shapes.JobView}, errors=(400, 404, 413)
    ),
    Endpoint(
        "GET",
        "/api/jobs/{id}/preview",
        preview,
        "Get the latest picture of a job at work",
        {200: ("image/webp",), 206: ("image/webp",), 304: ()},
        query=(Query("v", {"type": "string"}),),
        errors=(400, 404, 416),
    ),
    *(
        Endpoint(
            "GET",
            f"/api/jobs/{{id}}/{handler.__name__}",
            handler,
            summary,
            {200: ("image/png",), 206: ("image/png",), 304: ()},
            errors=(400, 404, 416),
        )
        for handler, summary in (
            (image, "Get the picture that a job starts with"),
            (image_end, "Get the picture that a job ends with"),
        )
    ),
    Endpoint(
        "GET",
        "/api/jobs/{id}/recipe",
        recipe,
        "Get the record of how a job was made",
        {200: ("application/json",)},
        errors=(400, 404),
    ),
)
