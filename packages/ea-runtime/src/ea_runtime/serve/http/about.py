"""What may be asked of this server: models, samplers, LoRAs, limits, plugins; and if it lives."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ea_runtime.plugins.host import get_host
from ea_runtime.serve.http import shapes
from ea_runtime.serve.http.bodies import MAX_JSON, MAX_UPLOAD
from ea_runtime.serve.http.endpoints import Endpoint, answer
from ea_runtime.serve.http.ids import check_query
from ea_runtime.serve.http.service import Service, service_of
from ea_runtime.serve.http.upload_child import MAX_PICTURE_PIXELS
from ea_runtime.serve.orders import allowed_frames


async def about(request: Request) -> Response:
    """Everything that a form needs."""
    check_query(request, ())
    service = service_of(request)
    return answer(await service.call(_about, service))


async def samplers(request: Request) -> Response:
    """All samplers."""
    check_query(request, ())
    return answer(shapes.SamplerList(samplers=_samplers()))


async def loras(request: Request) -> Response:
    """All LoRAs that can be used."""
    check_query(request, ())
    service = service_of(request)
    return answer(shapes.LoraList(loras=await service.call(_loras, service)))


async def plugins(request: Request) -> Response:
    """All parts of all plugins."""
    check_query(request, ())
    found = [
        shapes.PluginAbout(
            name=entry.record.name,
            kind=entry.kind,
            package=info.package,
            version=info.version,
            state=info.state.partition(":")[0],
        )
        for info in get_host().plugins.values()
        for entry in info.entries
    ]
    return answer(shapes.PluginList(plugins=found))


async def health(request: Request) -> Response:
    """The server answers; what its workers do."""
    service = service_of(request)
    counts = await service.call(service.store.counts)
    found = await service.call(service.workers)
    workers = [shapes.Worker(name=one.name, device=one.device, state=one.state) for one in found]
    return answer(shapes.Health(workers=workers, queued=counts["queued"]))


def _about(service: Service) -> shapes.About:
    return shapes.About(
        version=version("ea-runtime"),
        models=_models(service),
        samplers=_samplers(),
        loras=_loras(service),
        limits=_limits(service),
        step_caches=sorted(get_host().records("step_caches")),
    )


def _models(service: Service) -> list[shapes.ModelAbout]:
    limits = service.limits
    default = service.catalogue.default()
    entries = [one for one in service.catalogue.models().values() if one.problem is None]
    entries.sort(key=lambda one: one.name != default)  # what a request without a model gets comes first
    found = []
    for entry in entries:
        usual = entry.defaults
        defaults = shapes.Defaults(
            width=usual.width,
            height=usual.height,
            num_frames=usual.num_frames,
            steps=min(usual.steps, limits.steps),
            guidance=usual.guidance,
            sampler=usual.sampler,
            fps=usual.fps,
            negative_prompt="",
        )
        found.append(
            shapes.ModelAbout(
                name=entry.name,
                defaults=defaults,
                frames=allowed_frames(entry, limits.pixels),
                size_multiple=entry.geometry.size_multiple,
                max_pixels=limits.pixels,
                max_steps=limits.steps,
            )
        )
    return found


def _samplers() -> list[shapes.SamplerAbout]:
    entries = get_host().records("samplers").values()
    return [shapes.SamplerAbout(name=one.record.name, summary=one.record.summary) for one in entries]


def _loras(service: Service) -> list[shapes.LoraAbout]:
    return [
        shapes.LoraAbout(
            name=one.name, model=one.model or None, trigger_words=list(one.trigger_words), summary=one.summary
        )
        for one in service.catalogue.loras().values()
        if one.problem is None
    ]


def _limits(service: Service) -> dict[str, Any]:
    limits = service.limits
    return {
        "prompt_bytes": limits.prompt_bytes,
        "pixels": limits.pixels,
        "steps": limits.steps,
        "loras": limits.loras,
        "body_bytes": MAX_JSON,
        "upload_bytes": MAX_UPLOAD,
        "picture_bytes": MAX_UPLOAD,
        "picture_pixels": MAX_PICTURE_PIXELS,
        "queued": service.store.max_queued,
        "queued_per_client": service.store.max_per_client,
    }


ENDPOINTS = (
    Endpoint("GET", "/api/about", about, "Everything that a form needs", {200: shapes.About}, errors=(400,)),
    Endpoint("GET", "/api/samplers", samplers, "List samplers", {200: shapes.SamplerList}, errors=(400,)),
    Endpoint("GET", "/api/loras", loras, "List LoRAs", {200: shapes.LoraList}, errors=(400,)),
    Endpoint("GET", "/api/plugins", plugins, "List plugins", {200: shapes.PluginList}, errors=(400,)),
    Endpoint("GET", "/healthz", health, "Check that the server answers", {200: shapes.Health}, is_open=True),
)
