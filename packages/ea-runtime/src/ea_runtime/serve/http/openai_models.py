"""/v1/models of the OpenAI API: the models by name."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ea_runtime.serve.http import shapes
from ea_runtime.serve.http.endpoints import Endpoint, answer
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.ids import check_query
from ea_runtime.serve.http.service import Service, service_of


async def list_models(request: Request) -> Response:
    """All models."""
    check_query(request, ())
    return answer(shapes.ModelList(data=await _models(service_of(request))))


async def retrieve(request: Request) -> Response:
    """One model."""
    check_query(request, ())
    name = request.path_params["name"]
    for model in await _models(service_of(request)):
        if model.id == name:
            return answer(model)
    raise ApiError(404, f"there is no model {name[:60]!r}", code="model_not_found", param="model")


async def _models(service: Service) -> list[shapes.Model]:
    found = await service.call(service.catalogue.models)
    return [
        shapes.Model(id=one.name, created=one.created, owned_by="ea" if one.is_bundled else "you")
        for one in found
    ]


ENDPOINTS = (
    Endpoint("GET", "/v1/models", list_models, "List models", {200: shapes.ModelList}, errors=(400,)),
    Endpoint("GET", "/v1/models/{name}", retrieve, "Get a model", {200: shapes.Model}, errors=(400, 404)),
)
