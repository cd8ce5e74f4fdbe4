"""Orders: from the fields of a request to a job in the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from ea_runtime.serve.http.service import client_of, service_of
from ea_runtime.serve.jobs import Job
from ea_runtime.serve.orders import make_order


async def place_order(request: Request, fields: Mapping[str, Any]) -> Job:
    """The job that was added for these fields. Raises Refused and QueueFull.

    A field that is null counts as left out: OpenAI's clients send such.
    """
    service = service_of(request)
    given = {name: value for name, value in fields.items() if value is not None}
    order = await service.call(make_order, given, service.catalogue, service.limits)
    return await service.call(service.store.add, order, client_of(request))
