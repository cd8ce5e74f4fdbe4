"""Requests as clients send them, checked and completed before they enter the queue. Imports no torch.

    make_order({"prompt": "a red circle", "seconds": "3"}, catalogue) -> the `request` of a job

The checks are those of `ea generate`; caps come first, so that an oversized request costs nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from ea_runtime.errors import UserError, nearest
from ea_runtime.files.safe import quote
from ea_runtime.generation.adapters import check_weight
from ea_runtime.generation.inputs import check_known_frames
from ea_runtime.generation.prompt_tags import refuse_tags, split_tags
from ea_runtime.generation.requests import (
    ModelRequest,
    check_sampler,
    check_seeds,
    random_seed,
)
from ea_runtime.generation.resolve import parse_size, resolve
from ea_runtime.generation.step_cache import check_step_cache
from ea_runtime.generation.timed_prompts import read_timed_prompts, split_first
from ea_runtime.models.geometry import MAX_PIXELS, Geometry, check_int
from ea_runtime.serve.catalogue import Catalogue, ModelEntry, UnknownName
from ea_runtime.text.cleaning import MAX_PROMPT_BYTES, check_prompt
from ea_runtime.video.limits import check_limits
from ea_runtime.video.output import check_fps

#: fields of a request as clients send it
FIELDS = (
    "prompt",
    "negative_prompt",
    "model",
    "size",
    "seconds",
    "num_frames",
    "fps",
    "seed",
    "steps",
    "guidance",
    "sampler",
    "loras",
    "step_cache",
    "smooth",
    "strength",
    "fit",
    "prompts_at",
    "window",
    "loop",
    "join",
)
#: the pictures that a job may start from, by the names of a pipeline's arguments -> those of the files in a form
PICTURES = {"image": "input_reference", "image_end": "input_reference_end"}
#: a pipeline's arguments by the fields that give them
_ARGUMENTS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "width": "size",
    "height": "size",
    "negative": "negative_prompt",
    "weight": "loras",
    **PICTURES,
}
#: fields that a form sends as text
_INTEGERS, _NUMBERS, _TEXTS = (
    ("num_frames", "steps", "window"),
    ("seconds", "fps", "guidance", "strength"),
    ("size", "sampler", "fit", "join"),
)
_MAX_SECONDS = 1_000_000
#: numbers have 15 digits at most, as text and in JSON
_TOO_LARGE = 10**15


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on one request. prompt_bytes: of each prompt. pixels: frames x height x width."""

    prompt_bytes: int = MAX_PROMPT_BYTES
    pixels: int = MAX_PIXELS
    steps: int = 200
    loras: int = 8


class Refused(UserError):
    """A request that cannot be carried out.

    code: "invalid_value", "missing_value", "unknown_field", "too_large", "model_not_found", "lora_not_found" or
    "unusable". param: the field at fault, or None.
    """

    def __init__(self, code: str, param: str | None, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def make_order(
    fields: Mapping[str, Any],
    catalogue: Catalogue,
    limits: Limits | None = None,
    pictures: Iterable[str] = (),
) -> dict[str, Any]:
    """The complete request of a job, its seed drawn if none is given.

    fields: those of FIELDS; None stands for one that is left out, text may hold a number (as forms send it).
    `num_frames` wins over `seconds`, which is rounded to the nearest number of frames that the model can make.
    pictures: names of PICTURES that the job starts from; its worker adds their files to the settings.

    Returns {"settings": arguments of a pipeline's call, "fps", "model", "loras": [{"name", "scale"}], "kind": "mp4" or
    "png", "seconds", "size", "pictures": names}. Raises Refused.
    """
    limits = limits or Limits()
    given = _known(fields)
    prompts = {name: _prompt(given, name, limits) for name in ("prompt", "negative_prompt")}
    with _refusing("prompt"):
        text, tags = split_tags(prompts["prompt"])
    with _refusing("negative_prompt"):
        refuse_tags(prompts["negative_prompt"], "negative_prompt")
    if "prompts_at" in given:
        given["prompts_at"] = _timed_prompts(given["prompts_at"], limits)
    model = _model(given.get("model"), catalogue)
    request = _request(given, model, limits)
    loras = _loras(given.get("loras"), catalogue, limits, [(tag.name, tag.weight) for tag in tags])
    with _refusing():
        found = resolve(replace(request, negative_prompt=prompts["negative_prompt"])).request
        found = replace(_with_pictures(found, given, pictures), prompt=text)
    kind = "png" if found.num_frames == 1 else "mp4"
    with _refusing("size"):
        check_limits(kind, found.width, found.height, found.fps)
    return {
        "settings": found.settings,
        "fps": found.fps,
        "model": model.name,
        "loras": loras,
        "kind": kind,
        "seconds": found.num_frames / found.fps,
        "size": f"{found.width}x{found.height}",
        "pictures": [name for name in PICTURES if name in pictures],
    }


def fields_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that give a job's request again, for a remix that changes some of them."""
    settings = request["settings"]
    return {
        "prompt": settings["prompt"],
        "negative_prompt": settings["negative_prompt"],
        "model": request["model"],
        "size": f"{settings['width']}x{settings['height']}",
        "num_frames": settings["num_frames"],
        "fps": request["fps"],
        "seed": settings["seed"],
        "steps": settings["num_inference_steps"],
        "guidance": settings["guidance_scale"],
        "sampler": settings["sampler"],
        "loras": [dict(one) for one in request["loras"]],
        "step_cache": settings.get("step_cache"),
        "smooth": settings["smooth"],
        "strength": settings.get("strength"),
        "fit": settings.get("fit"),
        "prompts_at": settings.get("prompts_at"),
        "window": settings.get("window"),
        "loop": settings.get("loop"),
        "join": settings.get("join"),
    }


def allowed_frames(entry: ModelEntry, pixels: int = MAX_PIXELS, most: int = 4096) -> list[int]:
    """Numbers of frames to choose from: those that a model makes at its usual size within a budget, ascending.

    At most `most`; the longest is in one piece, or has ten times the model's own number. Others may be asked for.
    """
    geometry, defaults = entry.geometry, entry.defaults
    limit = min(pixels // (defaults.height * defaults.width), most * geometry.chunk_frames)
    positions, long = geometry.max_latent_frames, 10 * defaults.num_frames
    found = [
        n
        for n in range(1, limit + 1)
        if geometry.fits(n) and (positions is None or geometry.num_latents(n) <= positions or n <= long)
    ]
    return found[:most]


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are given. Raises Refused for one that does not exist."""
    for name in fields:
        if name not in FIELDS:
            raise Refused(
                "unknown_field",
                name[:64] if isinstance(name, str) else None,
                f"there is no field {quote(name)}; the fields are {', '.join(FIELDS)}"
                f"{nearest(name[:64], FIELDS) if isinstance(name, str) else ''}",
            )
    return {name: value for name, value in fields.items() if value is not None}


def _prompt(given: Mapping[str, Any], name: str, limits: Limits) -> str:
    if name not in given:
        if name == "prompt":
            raise Refused("missing_value", name, "`prompt` is needed: a text that describes the video")
        return ""
    text = given[name]
    is_large = isinstance(text, str) and len(text.encode("utf-8", "surrogatepass")) > limits.prompt_bytes
    with _refusing(name, "too_large" if is_large else "invalid_value"):
        check_prompt(text, name=name, max_bytes=limits.prompt_bytes)
    return text


def _model(name: Any, catalogue: Catalogue) -> ModelEntry:
    try:
        return catalogue.model(catalogue.default() if name is None else name)
    except UserError as error:
        code = "model_not_found" if isinstance(error, UnknownName) else "unusable"
        raise Refused(code, "model", str(error)) from None


def _loras(
    value: Any, catalogue: Catalogue, limits: Limits, tagged: list[tuple[str, float]]
) -> list[dict[str, Any]]:
    """The LoRAs of the field, then those that the prompt names."""
    if isinstance(value, str) and len(value) < 10_000:
        with suppress(ValueError, RecursionError):  # text that is no JSON is refused below
            value = json.loads(value)
    shape = '`loras` must be a list such as [{"name": "style", "scale": 0.8}]'
    if value is not None and not isinstance(value, list):
        raise Refused("invalid_value", "loras", f"{shape}, got {quote(value)}")
    wanted: list[tuple[Any, Any]] = []
    for one in value or []:
        if not isinstance(one, dict) or "name" not in one or not one.keys() <= {"name", "scale"}:
            raise Refused("invalid_value", "loras", f"{shape}, got {quote(one)} in it")
        wanted.append((one["name"], 1.0 if one.get("scale") is None else one["scale"]))
    wanted += tagged
    if len(wanted) > limits.loras:
        raise Refused(
            "too_large", "loras", f"at most {limits.loras} LoRAs can be on at once, got {len(wanted)}"
        )
    found: list[dict[str, Any]] = []
    for name, scale in wanted:
        with _refusing("loras"):
            weight = check_weight(scale)
        try:
            found.append({"name": catalogue.lora(name).name, "scale": weight})
        except UserError as error:
            code = "lora_not_found" if isinstance(error, UnknownName) else "unusable"
            raise Refused(code, "loras", str(error)) from None
    return found


def _request(given: Mapping[str, Any], model: ModelEntry, limits: Limits) -> ModelRequest:
    """The request without its texts; what is left out is the model's own."""
    values = {name: _number(given, name) for name in (*_INTEGERS, *_NUMBERS)}
    fps = model.defaults.fps if values["fps"] is None else values["fps"]
    with _refusing("fps"):
        check_fps(fps)
    num_frames = values["num_frames"]
    if num_frames is None and values["seconds"] is not None:
        num_frames = _frames_of(values["seconds"], fps, model.geometry)
    with _refusing("num_frames"):
        if num_frames is not None:
            num_frames = _any_length(model.geometry).check_num_frames(num_frames)
    with _refusing("steps"):
        if values["steps"] is not None:
            check_int("steps", values["steps"], 1, limits.steps)
    for name in _TEXTS:
        if not isinstance(given.get(name, ""), str):
            raise Refused("invalid_value", name, f"`{name}` must be text, got {quote(given[name])}")
    with _refusing("sampler"):
        if "sampler" in given:
            check_sampler(given["sampler"])
    cache = None if given.get("step_cache") in (None, "", "none") else given["step_cache"]
    with _refusing("step_cache"):
        check_step_cache(cache)
    width, height = None, None
    with _refusing("size"):
        if "size" in given:
            width, height = parse_size(given["size"])
            height, width = model.geometry.check_size(height, width, limits.pixels)
    usual = model.defaults
    with _refusing("size", "too_large"):
        model.geometry.check_budget(
            1, num_frames or usual.num_frames, height or usual.height, width or usual.width, limits.pixels
        )
    return ModelRequest.of(
        {
            "model": model.folder,
            "num_frames": num_frames,
            "width": width,
            "height": height,
            # the model's own number may be above the cap
            "num_inference_steps": values["steps"] or min(usual.steps, limits.steps),
            "guidance_scale": values["guidance"],
            "sampler": given.get("sampler"),
            "fps": fps,
            "seed": _seed(given),
            "step_cache": cache,
            "smooth": _flag(given, "smooth", True),
            "prompts_at": given.get("prompts_at"),
            "window": values["window"],
            "loop": _flag(given, "loop", False),
            "join": given.get("join"),
        }
    )


def _with_pictures(request: ModelRequest, given: Mapping[str, Any], pictures: Iterable[str]) -> ModelRequest:
    """The request with what is said of its pictures, which are not read here. Raises UserError."""
    strength = _number(given, "strength")
    found = replace(
        request, strength=None if strength is None else float(strength), fit=given.get("fit") or None
    )
    named: dict[str, Any] = dict.fromkeys(pictures, "a picture")
    check_known_frames(replace(found, **named))
    return found


def _frames_of(seconds: float, fps: float, geometry: Geometry) -> int:
    """The number of frames nearest to a length that the model can make, the shorter one of two."""
    if not 0 < seconds <= _MAX_SECONDS:
        line = f"`seconds` must be above 0 and at most {_MAX_SECONDS:,}, got {seconds:,}; 4 is usual"
        raise Refused("invalid_value", "seconds", line)
    exact = seconds * float(fps)
    first = max(1, round(exact) - geometry.chunk_frames)
    near = (n for n in range(first, first + 2 * geometry.chunk_frames) if geometry.fits(n))
    return min(near, key=lambda number: (abs(number - exact), number))


def _any_length(geometry: Geometry) -> Geometry:
    """The geometry of videos that are made in windows: positions do not bound their length."""
    return replace(geometry, max_latent_frames=None)


def _number(given: Mapping[str, Any], name: str) -> Any:
    """A number as it is, or read from text; None if it is left out."""
    value = given.get(name)
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"[+-]?\d{1,15}", text):
            return int(text)
        if name in _NUMBERS and re.fullmatch(r"[+-]?\d{0,15}(\.\d{0,15})?", text) and re.search(r"\d", text):
            return float(text)
        kind = "a whole number" if name in _INTEGERS else "a number"
        raise Refused("invalid_value", name, f"`{name}` must be {kind}, got {quote(value)}")
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _TOO_LARGE
    ):
        raise Refused(
            "invalid_value", name, f"`{name}` must be a finite number below 1e15, got {quote(value)}"
        )
    return value


def _seed(given: Mapping[str, Any]) -> int:
    value = given.get("seed", "random")
    if isinstance(value, str):
        value = value.strip().lower()
        if re.fullmatch(r"-?\d{1,20}", value):
            value = int(value)
        elif value not in ("random", ""):
            raise Refused(
                "invalid_value", "seed", f"`seed` must be a whole number or random, got {quote(value)}"
            )
    if value in ("random", "") or (value == -1 and not isinstance(value, bool | float)):
        return random_seed()
    with _refusing("seed"):
        if isinstance(value, list):
            raise UserError(f"`seed` must be a whole number or random, got {quote(value)}")
        return check_seeds(value, 1)[0]


def _flag(given: Mapping[str, Any], name: str, usual: bool) -> bool:
    value = given.get(name, usual)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise Refused("invalid_value", name, f"`{name}` must be true or false, got {quote(value)}")
    return value


def _timed_prompts(value: Any, limits: Limits) -> Any:
    """The texts by time, which a form may send as JSON. Raises Refused for large ones, and for LoRAs in them."""
    if isinstance(value, str) and len(value) > limits.prompt_bytes:
        raise Refused("too_large", "prompts_at", f"`prompts_at` may have {limits.prompt_bytes:,} bytes")
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):  # text that is no JSON is refused below
            value = json.loads(value)
    with _refusing("prompts_at"):
        for one in read_timed_prompts(value):
            check_prompt(one.text, name="prompts_at", max_bytes=limits.prompt_bytes)
            refuse_tags(one.text, "prompts_at")
        split_first(value, has_prompt=True)
    return value


@contextmanager
def _refusing(param: str | None = None, code: str = "invalid_value") -> Iterator[None]:
    """Within the block a UserError is a Refused that speaks of the client's fields.

    param: the field; None: the one that the message names.
    """
    try:
        yield
    except Refused:
        raise
    except UserError as error:
        text = str(error).replace("`width` and `height`", "`size`")
        for argument, field in _ARGUMENTS.items():
            text = text.replace(f"`{argument}`", f"`{field}`")
        text = text.replace(" or `video`", "")  # only of the command
        named = re.match(r"`(\w+)`", text)
        found = named[1] if named and named[1] in FIELDS else None
        raise Refused(code, param or found, text) from None
