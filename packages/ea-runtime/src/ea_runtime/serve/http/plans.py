"""Plans of orders: the memory and time of a job before it enters the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from starlette.requests import Request
from starlette.responses import Response

from ea_runtime.generation.adapters import AdapterChoice
from ea_runtime.generation.forecasts import forecast_request
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.models.layout import resolve_folder
from ea_runtime.planning.forecast import Forecast
from ea_runtime.planning.room import free_memory_of_host
from ea_runtime.planning.words import refusal
from ea_runtime.serve.http import shapes
from ea_runtime.serve.http.bodies import read_fields
from ea_runtime.serve.http.endpoints import Endpoint, answer
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.ids import check_query
from ea_runtime.serve.http.service import Service, service_of
from ea_runtime.serve.orders import PICTURES, make_order


async def plan(request: Request) -> Response:
    """The plan of an order that is not placed."""
    check_query(request, ())
    service = service_of(request)
    fields = {name: value for name, value in (await read_fields(request)).items() if value is not None}
    has_picture = fields.pop("has_picture", False)
    if not isinstance(has_picture, bool):
        raise ApiError(400, "`has_picture` must be true or false", code="invalid_value", param="has_picture")
    pictures = list(PICTURES)[:1] if has_picture else []
    order = await service.call(make_order, fields, service.catalogue, service.limits, pictures)
    return answer(_view(await service.call(_forecast, service, order)))


def _forecast(service: Service, order: Mapping[str, Any]) -> Forecast:
    """Raises UserError for a model that cannot be planned."""
    entry = service.catalogue.model(order["model"])
    device = next((one.device for one in service.workers()), None)
    settings = {**order["settings"], **dict.fromkeys(order["pictures"], "a picture")}
    place = {"model": entry.folder, "fps": order["fps"], "device": device, "engine": "torch"}
    form = {"quantize": service.loading.quantize, "offload": service.loading.offload}
    request = ModelRequest.of({**settings, **place, **form})
    loras = [AdapterChoice(service.catalogue.lora(one["name"]).path, one["scale"]) for one in order["loras"]]
    # models that workers hold make room for a job
    held = _held_by_workers() if device in (None, "cpu") else 0
    return forecast_request(
        request,
        resolve_folder(entry.folder),
        adapters=loras,
        kind=order["kind"],
        memory=free_memory_of_host() + held if held else None,
        is_last=False,
        is_exact=True,
    )


def _held_by_workers() -> int:
    """Bytes of memory of this server's child processes."""
    total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.Error:
            continue  # it has just ended
    return total


def _view(forecast: Forecast) -> shapes.PlanView:
    phases = [
        shapes.PlanPhase(name=one.name, bytes=one.device_bytes, flops=one.flops, seconds=one.seconds)
        for one in forecast.phases
    ]
    return shapes.PlanView(
        fits=forecast.fits,
        device=forecast.device,
        peak_bytes=forecast.peak,
        usable_bytes=forecast.usable,
        host_peak_bytes=forecast.host_peak,
        flops=forecast.flops,
        seconds=forecast.seconds,
        phases=phases,
        largest=list(forecast.nearest),
        message=None if forecast.fits else refusal(forecast),
    )


ENDPOINTS: Sequence[Endpoint] = (
    Endpoint(
        "POST",
        "/api/plan",
        plan,
        "Plan the memory and time of a job without asking for it",
        {200: shapes.PlanView},
        takes=shapes.PlanOrder,
        errors=(400, 413, 415),
    ),
)
