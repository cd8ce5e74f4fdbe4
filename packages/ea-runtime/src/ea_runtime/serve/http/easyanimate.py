"""EasyAnimate's own three endpoints, for programs written for its server.

They answer 200 with {"message": ...} whatever happens, as theirs do. Differs from EasyAnimate: models and LoRAs are
names of this server instead of paths, the choice of a model is each client's own, `save_sample_path` is a name.
"""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ea_runtime.errors import UserError
from ea_runtime.serve.http.bodies import read_loose_json
from ea_runtime.serve.http.endpoints import Endpoint
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.ids import check_query
from ea_runtime.serve.http.orders import place_order
from ea_runtime.serve.http.service import Service, client_of, service_of
from ea_runtime.serve.http.views import file_of
from ea_runtime.serve.http.waiting import ended, require_completed

_DONE = "Success"
_EDITIONS = ("v1", "v2")
#: their names of fields -> ours
_FIELDS = {
    "prompt_textbox": "prompt",
    "negative_prompt_textbox": "negative_prompt",
    "sample_step_slider": "steps",
    "cfg_scale_slider": "guidance",
    "seed_textbox": "seed",
    "length_slider": "num_frames",
}
_NONE = (None, "", "none")
_LORA_SCALE = 0.55
#: bytes that are encoded at a time; a multiple of 3 leaves no padding in between
_PIECE = 3 * (64 << 10)
_CLIENTS = 256


class Choices:
    """The model that each client chose, of the latest clients."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, str] = OrderedDict()

    def choose(self, client: str, model: str) -> None:
        """Notes a choice."""
        self._models[client] = model
        self._models.move_to_end(client)
        while len(self._models) > _CLIENTS:
            self._models.popitem(last=False)

    def of(self, client: str) -> str | None:
        """The model that a client chose, or None."""
        return self._models.get(client)


async def infer_forward(request: Request) -> Response:
    """A video or picture, made while the client waits, in base 64."""
    check_query(request, ())
    data = await read_loose_json(request)
    service = service_of(request)
    try:
        job = await place_order(request, _order(data, request.app.state.choices.of(client_of(request))))
        done = require_completed(await ended(request, job))
        place = file_of(service.store, done, "video")
        if place is None:
            raise ApiError(404, f"{job.id} has no file")
        file = await service.call(place.open, "rb")
    except (ApiError, UserError, OSError) as error:
        return _message(f"Error. error information is {error}")
    return StreamingResponse(
        _encoded(service, file, f"{job.id}{place.suffix}"), media_type="application/json"
    )


async def update_edition(request: Request) -> Response:
    """Accepts the editions whose models ea runs."""
    check_query(request, ())
    edition = (await read_loose_json(request)).get("edition", "v2")
    if edition not in _EDITIONS:
        return _message(f"Error. error information is `edition` must be v1 or v2, got {str(edition)[:40]!r}")
    return _message(_DONE)


async def update_diffusion_transformer(request: Request) -> Response:
    """Chooses the model of this client's next requests."""
    check_query(request, ())
    service = service_of(request)
    path = (await read_loose_json(request)).get("diffusion_transformer_path", "none")
    try:
        model = await service.call(service.catalogue.model, _name(path))
    except UserError as error:
        return _message(f"Error. error information is {error}")
    request.app.state.choices.choose(client_of(request), model.name)
    return _message(_DONE)


def _order(data: dict[str, Any], model: str | None) -> dict[str, Any]:
    """Our fields for theirs. Raises UserError."""
    fields: dict[str, Any] = {ours: data[theirs] for theirs, ours in _FIELDS.items() if theirs in data}
    if "width_slider" in data or "height_slider" in data:
        fields["size"] = f"{data.get('width_slider', 672)}x{data.get('height_slider', 384)}"
    if "sampler_dropdown" in data:
        fields["sampler"] = str(data["sampler_dropdown"])[:40].lower().replace(" ", "-")
    if data.get("is_image") or data.get("generation_method") == "Image Generation":
        fields["num_frames"] = 1
    for name in ("base_model_path", "motion_module_path"):
        if data.get(name) not in _NONE:
            raise UserError(f"`{name}` must be none here: a model is one folder, chosen by its name")
    if data.get("lora_model_path") not in _NONE:
        scale = data.get("lora_alpha_slider", _LORA_SCALE)
        fields["loras"] = [{"name": _name(data["lora_model_path"]), "scale": scale}]
    if model is not None:
        fields["model"] = model
    return fields


def _name(path: Any) -> Any:
    """The last part of a path without the suffix of weights: what its model or LoRA is called here."""
    if not isinstance(path, str):
        return path
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2].removesuffix(".safetensors")


def _message(text: str) -> JSONResponse:
    return JSONResponse({"message": text})


async def _encoded(service: Service, file: Any, name: str) -> AsyncIterator[str]:
    """The answer in pieces: a long video is never in memory as a whole."""
    try:
        yield f'{{"message": "{_DONE}", "save_sample_path": {json.dumps(Path(name).name)}, "base64_encoding": "'
        while piece := await service.call(file.read, _PIECE):
            yield base64.b64encode(piece).decode()
        yield '"}'
    finally:
        file.close()


_ERRORS = (400, 413, 415)
ENDPOINTS = tuple(
    Endpoint(
        "POST",
        f"/easyanimate/{handler.__name__}",
        handler,
        summary,
        {200: ("application/json",)},
        errors=_ERRORS,
    )
    for handler, summary in (
        (infer_forward, "EasyAnimate's own: make a video"),
        (update_edition, "EasyAnimate's own: choose the edition"),
        (update_diffusion_transformer, "EasyAnimate's own: choose the model"),
    )
)
