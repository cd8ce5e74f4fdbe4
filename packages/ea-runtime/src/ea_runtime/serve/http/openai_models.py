"""/v1/models of the OpenAI API: the models by name."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from ea_runtime.models.layout import BUNDLED, bundled_folder
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
    return await service.call(_read, service)


def _read(service: Service) -> list[shapes.Model]:
    found = []
    for name, entry in service.catalogue.models().items():
        if entry.problem is None:
            is_bundled = name in BUNDLED
            folder = bundled_folder(name) if is_bundled else Path(entry.folder)
            owner = "ea" if is_bundled else "you"
            found.append(shapes.Model(id=name, created=_changed(folder), owned_by=owner))
    return found


def _changed(folder: Path) -> int:
    try:
        return int(folder.stat().st_mtime)
    except OSError:
        return 0


ENDPOINTS = (
    Endpoint("GET", "/v1/models", list_models, "List models", {200: shapes.ModelList}, errors=(400,)),
    Endpoint("GET", "/v1/models/{name}", retrieve, "Get a model", {200: shapes.Model}, errors=(400, 404)),
)
