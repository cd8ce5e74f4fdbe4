"""Ids and pages of lists, as requests give them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

from starlette.requests import Request

from ea_runtime.errors import UserError, nearest
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.service import Service
from ea_runtime.serve.jobs import Job, StoreError
from ea_runtime.serve.state import JOB_ID

MAX_PAGE = 100


class Page(NamedTuple):
    """A part of a list: `limit` jobs after the job `after`."""

    limit: int
    after: str | None
    order: Literal["asc", "desc"]


async def require_job(service: Service, job_id: str) -> Job:
    """The job of that id. Raises ApiError (404) if there is none."""
    # the id becomes a name of files further down: nothing but an id gets there
    job = await service.call(service.store.get, job_id) if JOB_ID.fullmatch(job_id) else None
    if job is None:
        raise no_job(job_id)
    return job


def no_job(job_id: str) -> ApiError:
    """The answer to an id that is unknown, or of a deleted job."""
    return ApiError(404, f"there is no job {job_id[:60]!r}", code="job_not_found", param="id")


def check_query(request: Request, known: Collection[str]) -> None:
    """Raises ApiError for query parameters that are unknown, or there twice."""
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            there = f"; there are: {', '.join(known)}" if known else ""
            raise ApiError(
                400,
                f"there is no query parameter {name[:60]!r} here{there}{nearest(name[:60], known)}",
                code="unknown_parameter",
                param=name[:60],
            )
        if names.count(name) > 1:
            raise ApiError(
                400, f"the query parameter {name!r} is there twice", code="invalid_value", param=name
            )


async def page_of(request: Request, service: Service) -> Page:
    """limit, after and order of a list. Raises ApiError."""
    check_query(request, ("limit", "after", "order"))
    query = request.query_params
    limit = query.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 6 and 1 <= int(limit) <= MAX_PAGE):
        raise ApiError(
            400,
            f"`limit` must be a whole number from 1 to {MAX_PAGE}, got {limit[:40]!r}",
            code="invalid_value",
            param="limit",
        )
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise ApiError(
            400, f"`order` must be asc or desc, got {order[:40]!r}", code="invalid_value", param="order"
        )
    after = query.get("after")
    if after is not None:
        try:
            await service.call(service.store.list, 1, after)
        except StoreError:
            raise
        except UserError as error:  # a job that was deleted meanwhile is none
            raise ApiError(400, str(error), code="invalid_value", param="after") from None
    return Page(int(limit), after, order)
