"""Forecasts of requests, carried out and compared with what a run took. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.generation.adapters import AdapterChoice
from ea_runtime.generation.inputs import has_known_frames, strength_of
from ea_runtime.generation.offload_modes import check_mode
from ea_runtime.generation.requests import ModelRequest, Request
from ea_runtime.models.geometry import Geometry
from ea_runtime.models.quantize import CHOSEN, KINDS, UNSCALED, is_installed, parse_quantize
from ea_runtime.planning.calibration import learned, read_calibration, write_calibration
from ea_runtime.planning.choose import make_forecast
from ea_runtime.planning.forecast import Forecast
from ea_runtime.planning.parts import joined, loaded_part, read_lora, read_parts
from ea_runtime.planning.phases import CUDA_CONTEXT, Planner
from ea_runtime.planning.room import Room, find_room
from ea_runtime.planning.setting import Setting, text_length
from ea_runtime.planning.units import in_gb, in_seconds

logger = logging.getLogger("ea")

#: phases of a plan, and what a run times by itself of each
_WITH = {"loading": "imports", "decoding": "writing"}


def forecast_request(
    request: ModelRequest,
    folder: Path,
    *,
    adapters: Sequence[AdapterChoice] = (),
    batch: int = 1,
    memory: int | None = None,
    kind: str | None = "mp4",
    is_last: bool = True,
    is_exact: bool = False,
) -> Forecast:
    """The forecast of a request that is complete, for a model folder.

    batch: videos denoised together. memory: bytes to count as free on the device. kind: of the output. is_last: no
    other prompt follows. is_exact: only ways that keep the result as it is. Raises UserError for what cannot be
    forecast, or is not there.
    """
    if request.engine != "torch":
        raise UserError(f"plans are made for engine torch, got {request.engine!r}; leave --engine out")
    room = find_room(request.device, memory)
    offload = check_mode(request.offload or "none", room.kind)
    parts = read_parts(folder)
    geometry = Geometry.from_configs(parts["vae"].config, parts["denoiser"].config)
    dtype, forms = request.dtype or room.dtype, parse_quantize(request.quantize)
    planner = Planner(parts, geometry, room.kind, dtype, read_calibration(room.kind), forms)
    setting = setting_of(request, geometry, batch=batch, kind=kind, adapters=adapters)
    was_tiled = bool(parts["vae"].config.get("use_tiling"))
    return make_forecast(
        planner,
        setting,
        room,
        str(request.model),
        can_drop_text=is_last,
        was_tiled=was_tiled,
        # who leaves the way to the plan carries it out
        forms=_forms(room) if request.offload == "auto" and not (request.compile or is_exact) else (),
        offload="none" if request.compile and offload == "auto" else offload,
        can_tile=not is_exact,
    )


def _forms(room: Room) -> list[str]:
    """The forms that a plan may keep the denoiser in: those whose packages are here."""
    return [one for one in CHOSEN if is_installed(KINDS[one]) and (one != UNSCALED or room.kind != "mps")]


def setting_of(
    request: Request,
    geometry: Geometry,
    *,
    batch: int = 1,
    kind: str | None = None,
    adapters: Sequence[AdapterChoice] = (),
) -> Setting:
    """The numbers of a request that memory and time follow from; a LoRA that cannot be read counts nothing."""
    prompt = request.prompt if isinstance(request.prompt, str) else next(iter(request.prompt or ()), None)
    negative = request.negative_prompt
    negative = negative if isinstance(negative, str) else next(iter(negative or ()), "")
    loras = []
    for one in adapters:
        with suppress(UserError):  # putting it on refuses it, and says more
            loras += [read_lora(Path(one.path))] if one.weight else []
    strength, windows = strength_of(request), request.windows(geometry)
    return Setting(
        frames=request.num_frames,
        height=request.height,
        width=request.width,
        steps=max(1, min(request.num_inference_steps, int(request.num_inference_steps * strength))),
        has_guidance=request.has_guidance,
        batch=batch,
        is_smooth=request.smooth,
        has_known=has_known_frames(request),
        known_pictures=_known_pictures(request),
        has_cache=request.step_cache is not None,
        text_tokens=(24 if prompt is None else text_length(prompt), text_length(negative)),
        lora=joined([ranks for ranks, _ in loras]),
        lora_bytes=sum(size for _, size in loras),
        kind=kind,
        window=windows.longest,
        windows=len(windows),
    )


def _known_pictures(request: Request) -> int:
    """The number of pictures that a video starts from and ends with; 0 if it is made from a video."""
    is_video = request.video is not None or request.mask is not None
    return 0 if is_video else sum(one is not None for one in (request.image, request.image_end))


def forecast_pipeline(pipe: Any, request: Request, batch: int, memory: int | None = None) -> Forecast:
    """The forecast of a checked request of `batch` videos on a pipeline that is loaded (a VideoPipeline)."""
    import torch

    from ea_runtime.machine.device import dtype_name
    from ea_runtime.machine.memory import current_rss

    modules = {"text": getattr(pipe.text, "model", pipe.text), "denoiser": pipe.denoiser, "vae": pipe.vae}
    parts = {name: loaded_part(name, module, _config_of(module)) for name, module in modules.items()}
    if pipe.quantize is not None:
        from ea_runtime.models.quantize_layers import weight_bytes

        sizes = {name: weight_bytes(modules[name]) for name in parts if pipe.quantize.of(name) is not None}
        parts |= {name: replace(parts[name], held=size) for name, size in sizes.items()}
    device = pipe.device
    room = find_room(str(device), memory)
    dtype = dtype_name(pipe.dtype)
    calibration = read_calibration(room.kind)
    planner = Planner(parts, pipe.geometry, room.kind, dtype, calibration, pipe.quantize)
    offload = getattr(pipe, "offload", "none")
    held = planner.held_by_pipeline(offload)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        room = Room("cuda", torch.cuda.get_device_name(device), memory or free, room.host_free, room.dtype)
    else:
        # this program's own memory is known: what it has now without the parts
        program = max(current_rss() - held, calibration.program)
        planner = replace(planner, calibration=calibration.with_program(program))
        held += program
    setting = setting_of(request, pipe.geometry, batch=batch)
    return make_forecast(
        planner,
        setting,
        room,
        pipe.model or "this pipeline",
        can_drop_text=False,
        was_tiled=bool(getattr(pipe.vae, "use_tiling", False)),
        held=0 if memory else held,
        together=max(1, min(request.batch_size, batch)),
        offload=offload,
    )


def _config_of(module: Any) -> Mapping[str, Any]:
    config: Any = getattr(module, "config", {})
    return config if isinstance(config, Mapping) else config.to_dict() if hasattr(config, "to_dict") else {}


@dataclass
class Watch:
    """A forecast that is carried out, and then compared with the run."""

    forecast: Forecast

    def prepare(self, pipe: Any) -> None:
        """Sets the pipeline up for the way that was chosen."""
        if self.forecast.way.is_tiled and hasattr(pipe.vae, "enable_tiling"):
            pipe.vae.enable_tiling()

    def on_step(self, pipe: Any, report: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
        """Progress, that drops the text encoder where the way says so."""
        if not self.forecast.way.drops_text:
            return report

        def step(phase: str, done: int, total: int) -> None:
            if phase != "text" and pipe.text is not None:
                from ea_runtime.machine.memory import free_memory

                pipe.text = None
                free_memory()
            report(phase, done, total)

        return step

    def compare(self, timings: Mapping[str, float], pipe: Any) -> str:
        """One line, predicted against measured, which the next plans learn from."""
        import torch

        from ea_runtime.machine.memory import peak_rss

        if self.forecast.device == "cuda":
            measured, program = torch.cuda.max_memory_reserved(pipe.device) + CUDA_CONTEXT, 0
        else:
            measured, program = peak_rss(), read_calibration(self.forecast.device).program
        return self.learn(timings, measured, program)

    def learn(self, timings: Mapping[str, float], measured: int, program: int) -> str:
        """Remembers a run with its peak in bytes and its seconds by phase; the line."""
        f = self.forecast
        phases = {
            phase.name: (phase.seconds, timings[phase.name] + timings.get(_WITH.get(phase.name, ""), 0.0))
            for phase in f.phases
            if phase.seconds is not None and phase.name in timings
        }
        before = read_calibration(f.device)
        taken = sum(seconds for _, seconds in phases.values())
        planned = sum(seconds for seconds, _ in phases.values())
        write_calibration(f.device, learned(before, program, f.peak, measured, phases))
        line = (
            f"plan: peak {in_gb(f.peak)} predicted, {in_gb(measured)} measured ({measured / f.peak - 1:+.0%})"
        )
        if phases:
            line += f"; {in_seconds(planned)} predicted, {in_seconds(taken)} measured ({taken / planned - 1:+.0%})"
        logger.debug("%s", line)
        return line
