"""The OpenAI videos API: /v1/videos and what is beneath it."""

from __future__ import annotations

import re
import time

from starlette.requests import Request
from starlette.responses import Response

from ea_runtime.serve.http import shapes
from ea_runtime.serve.http.bodies import reading_fields
from ea_runtime.serve.http.contents import file_answer
from ea_runtime.serve.http.endpoints import Endpoint, Query, answer
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.ids import check_query, page_of, require_job
from ea_runtime.serve.http.picture_orders import place_picture_order
from ea_runtime.serve.http.removal import remove_job
from ea_runtime.serve.http.service import service_of
from ea_runtime.serve.http.views import file_of, video_view
from ea_runtime.serve.jobs import Job
from ea_runtime.serve.orders import PICTURES, fields_of

#: milliseconds after which OpenAI's clients look again: a tenth of the job's age, within these
POLL_AFTER = (500, 5000)
VARIANTS = ("video", "thumbnail", "spritesheet")
_TYPES = {".mp4": "video/mp4", ".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg"}
LIST_QUERY = (
    Query("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
    Query("after", {"type": "string", "pattern": "^video_[0-9a-f]{32}$"}),
    Query("order", {"type": "string", "enum": ["asc", "desc"]}),
)


async def create(request: Request) -> Response:
    """A new job."""
    check_query(request, ())
    async with reading_fields(request, files=len(PICTURES)) as fields:
        job = await place_picture_order(request, fields)
    return _answer(job)


async def retrieve(request: Request) -> Response:
    """One video."""
    check_query(request, ())
    return _answer(await require_job(service_of(request), request.path_params["id"]))


async def list_videos(request: Request) -> Response:
    """A page of videos."""
    service = service_of(request)
    page = await page_of(request, service)
    jobs, has_more = await service.call(service.store.list, page.limit, page.after, page.order)
    ids = [job.id for job in jobs]
    return answer(
        shapes.VideoList(
            data=[video_view(job) for job in jobs],
            first_id=ids[0] if ids else None,
            last_id=ids[-1] if ids else None,
            has_more=has_more,
        )
    )


async def content(request: Request) -> Response:
    """A product of a completed job."""
    service = service_of(request)
    check_query(request, ("variant",))
    variant = request.query_params.get("variant", "video")
    if variant not in VARIANTS:
        raise ApiError(
            400,
            f"`variant` must be one of {', '.join(VARIANTS)}, got {variant[:40]!r}",
            code="invalid_value",
            param="variant",
        )
    job = await require_job(service, request.path_params["id"])
    if job.state != "completed":
        raise ApiError(
            404,
            f"{job.id} is {job.state}; there is something to download when it is completed",
            code="not_ready",
        )
    place = file_of(service.store, job, variant)
    if place is None:
        raise ApiError(404, f"{job.id} has no {variant}", code="gone")
    assert job.result is not None
    return await file_answer(
        request,
        service,
        place,
        _TYPES[place.suffix],
        tag=f"{job.result['sha256'][:32]}-{variant}",
        name=_saved_as(job, variant, place.suffix),
    )


async def delete(request: Request) -> Response:
    """Removes a job and its files; one at work stops."""
    return answer(shapes.VideoDeleted(id=await remove_job(request)))


async def remix(request: Request) -> Response:
    """A new job from an old one's request and pictures, and a new prompt."""
    check_query(request, ())
    async with reading_fields(request, files=len(PICTURES)) as fields:
        if fields.get("prompt") is None:
            raise ApiError(
                400,
                "`prompt` is needed: a text that describes the video",
                code="missing_value",
                param="prompt",
            )
        source = await require_job(service_of(request), request.path_params["id"])
        given = {name: value for name, value in fields.items() if value is not None}
        before = fields_of(source.request)
        if given.get("seconds") is not None:
            before.pop("num_frames")
        merged = {"image_of": source.id, **before, **given}
        job = await place_picture_order(request, merged, remixed_from=source.id)
    return _answer(job)


def _saved_as(job: Job, variant: str, suffix: str) -> str:
    """Name under which browsers save a product: the words of its prompt, as `ea generate` names its outputs."""
    words = re.findall(r"[a-z0-9]+", job.request["settings"]["prompt"][:1000].lower())
    stem = "-".join(words)[:60].strip("-") or job.id
    return f"{stem}{'' if variant == 'video' else '-' + variant}{suffix}"


def _answer(job: Job) -> Response:
    shortest, longest = POLL_AFTER
    wait = min(longest, max(shortest, round(100 * (time.time() - job.created_at))))
    return answer(video_view(job), headers={"openai-poll-after-ms": str(wait)})


_ERRORS = (400, 413, 415, 429)
ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/videos",
        create,
        "Ask for a video",
        {200: shapes.Video},
        takes=shapes.VideoOrder,
        forms="also",
        files=tuple(PICTURES.values()),
        errors=_ERRORS,
    ),
    Endpoint(
        "GET",
        "/v1/videos",
        list_videos,
        "List videos",
        {200: shapes.VideoList},
        query=LIST_QUERY,
        errors=(400,),
    ),
    Endpoint("GET", "/v1/videos/{id}", retrieve, "Get a video", {200: shapes.Video}, errors=(400, 404)),
    Endpoint(
        "DELETE",
        "/v1/videos/{id}",
        delete,
        "Delete a video; one at work stops",
        {200: shapes.VideoDeleted},
        errors=(400, 404, 413),
    ),
    Endpoint(
        "GET",
        "/v1/videos/{id}/content",
        content,
        "Download a video, its thumbnail or its sprite sheet",
        {
            200: ("video/mp4", "image/png", "image/webp", "image/jpeg"),
            206: ("video/mp4", "image/png", "image/webp", "image/jpeg"),
            304: (),
        },
        query=(Query("variant", {"type": "string", "enum": list(VARIANTS)}),),
        errors=(400, 404, 416),
    ),
    Endpoint(
        "POST",
        "/v1/videos/{id}/remix",
        remix,
        "Ask for a video like another one, with a new prompt",
        {200: shapes.Video},
        takes=shapes.RemixOrder,
        forms="also",
        files=tuple(PICTURES.values()),
        errors=(*_ERRORS, 404),
    ),
)
