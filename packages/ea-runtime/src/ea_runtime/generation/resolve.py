"""A request completed and checked: each setting from the flag, else the record, the model's folder, the default.

Imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.files.safe import inside, is_file, read_json
from ea_runtime.generation.inputs import check_known_frames, settle_inputs, size_of_inputs, without_others
from ea_runtime.generation.requests import ModelRequest, check_prompts
from ea_runtime.generation.sidecar import request_of
from ea_runtime.machine.device import check_dtype_name
from ea_runtime.models.geometry import Geometry
from ea_runtime.models.layout import PARTS, read_defaults, resolve_folder
from ea_runtime.models.quantize import check_engine, check_packages, parse_quantize
from ea_runtime.video.output import check_fps

#: the size that follows a picture or video
AUTO = "auto"
_SIZE = re.compile(r"\s*(-?\d{1,9})\s*[xX×*]\s*(-?\d{1,9})\s*")

#: size of a bundle's graphs: folder -> num_frames, height, width
ReadSize = Callable[[str], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request with nothing left out but the prompt, and what it was completed from.

    folder: of the model. classes: kind of record -> class of the model's networks.
    """

    request: ModelRequest
    geometry: Geometry
    folder: Path
    classes: dict[str, str]


def resolve(
    request: ModelRequest,
    *,
    size: str | None = None,
    recorded: Mapping[str, Any] | None = None,
    read_bundle_size: ReadSize | None = None,
) -> Resolved:
    """Each setting from the first that has it: request, record, folder of the model, default; then all are checked.

    size: WIDTHxHEIGHT in place of the request's, or auto for that of its picture or video. recorded: a sidecar's
    record. read_bundle_size: for a request with a bundle, whose size is then the default. The prompt and the seed stay
    as they are. Raises UserError.
    """
    flags = replace(request.with_first_prompt(), model=request.model or None)
    if size is not None and size != AUTO:
        width, height = parse_size(size)
        flags = replace(flags, width=width, height=height)
    before = ModelRequest() if recorded is None else without_others(request_of(recorded), flags)
    if flags.num_frames not in (None, before.num_frames) and before.window == before.num_frames:
        before = replace(before, window=None)  # it was in one piece
    if flags.engine is not None or flags.bundle is not None:
        before = replace(before, engine=None, bundle=None)
    usual = ModelRequest(
        model="tiny",
        engine="torch",
        negative_prompt="",
        smooth=True,
        compile=bool(flags.cuda_graphs),
        offload="auto",
    )
    asked = flags.over(before, usual)
    folder = _model_folder(asked.model, is_recorded=flags.model is None and recorded is not None)
    _, defaults = read_defaults(folder)
    _check_engine(asked)
    forms = parse_quantize(asked.quantize)
    check_engine(
        asked.engine, forms, asked.attention, "none" if asked.offload in (None, "auto") else asked.offload
    )
    if forms is not None:
        check_packages(forms)
    if asked.bundle is not None and read_bundle_size is not None:
        defaults = defaults.model_copy(update=read_bundle_size(asked.bundle))
    asked = asked.over(ModelRequest.of_model(defaults, seed=defaults.seed, fps=defaults.fps))
    if not math.isfinite(asked.fps):
        raise UserError(
            f"`fps` must be a finite number of frames a second, got {asked.fps}; {defaults.fps} is usual"
        )
    check_fps(asked.fps)
    asked = replace(
        asked,
        # 8 and 8.0 are one request, so they must be written alike
        fps=int(asked.fps) if float(asked.fps).is_integer() else asked.fps,
        step_cache=None if asked.step_cache == "none" else asked.step_cache,
        dtype=None if asked.dtype in (None, "auto") else check_dtype_name(asked.dtype),
        compile=bool(asked.compile),
        cuda_graphs=bool(asked.cuda_graphs),
        quantize=None if forms is None else forms.text,
    )
    configs = {name: _config(folder, name) for name in ("vae", "denoiser")}
    geometry = Geometry.from_configs(configs["vae"], configs["denoiser"])
    check_known_frames(asked)
    asked = settle_inputs(asked, recorded, flags)
    if size == AUTO:
        width, height = size_of_inputs(asked, geometry, defaults.width * defaults.height)
        asked = replace(asked, width=width, height=height)
    negative = check_prompts(asked.negative_prompt, "negative")[0]
    return Resolved(
        replace(asked.checked(geometry, defaults=defaults), negative_prompt=negative),
        geometry,
        folder,
        {PARTS[name].kind: str(c.get("_class_name")) for name, c in configs.items() if c is not None},
    )


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of "672x384". Raises UserError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UserError(f"`size` must be WIDTHxHEIGHT in pixels such as 672x384, got {text[:60]!r}")
    return int(match[1]), int(match[2])


def _model_folder(model: str, *, is_recorded: bool) -> Path:
    """Raises UserError as `resolve_folder` does."""
    try:
        return resolve_folder(model)
    except UserError as error:
        if not is_recorded:
            raise
        raise UserError(f"{error}; `--from` was made with it: give its folder with --model") from error


def _check_engine(asked: ModelRequest) -> None:
    from ea_runtime.plugins.host import get_host

    name, bundle = asked.engine, asked.bundle
    if getattr(get_host().get("engines", name), "needs_bundle", False) and bundle is None:
        raise UserError(
            f"`--engine {name}` needs `--bundle FOLDER`, the folder that `ea export --{name}` wrote"
        )
    if bundle is not None and not Path(bundle).is_dir():
        raise UserError(f"`bundle` must be a folder that `ea export` wrote, got {bundle!r}")


def _config(folder: Path, part: str) -> dict[str, Any] | None:
    """A part's config.json, or None where it is missing: loading the model says so better."""
    name = f"{PARTS[part].folder}/config.json"
    return read_json(folder, name) if is_file(inside(folder, name)) else None
