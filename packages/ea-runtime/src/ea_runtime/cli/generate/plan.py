"""What `ea generate` is going to do, settled and checked before torch is imported."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ea_runtime.cli.generate.sidecar import describes, plan_sidecar, read_sidecar
from ea_runtime.errors import UserError
from ea_runtime.export.bundle import read_size
from ea_runtime.files.safe import inside, is_file, read_json
from ea_runtime.generation.adapters import AdapterChoice, plan_adapters
from ea_runtime.generation.requests import (
    check_guidance,
    check_prompts,
    check_sampler,
    check_seeds,
    check_steps,
)
from ea_runtime.generation.step_cache import check_step_cache
from ea_runtime.machine.device import check_dtype_name
from ea_runtime.models.geometry import Geometry
from ea_runtime.models.layout import PARTS, read_defaults, resolve_folder
from ea_runtime.video.output import KINDS, Output, check_fps, plan_output

MAX_PROMPT_FILE = 16 << 20
_SIZE = re.compile(r"\s*(-?\d{1,9})\s*[xX×*]\s*(-?\d{1,9})\s*")


@dataclass(frozen=True, slots=True)
class Wishes:
    """The options as given; None where the user said nothing."""

    prompt: str | None = None
    prompts_file: str | None = None
    sidecar: str | None = None
    model: str | None = None
    negative: str | None = None
    num_frames: int | None = None
    size: str | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    seed: int | None = None
    fps: float | None = None
    device: str | None = None
    dtype: str | None = None
    engine: str | None = None
    bundle: str | None = None
    smooth: bool | None = None
    step_cache: str | None = None
    compile: bool | None = None
    cuda_graphs: bool | None = None
    loras: list[str] | None = None
    output: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One video: the arguments of the pipeline's call, and where it goes."""

    settings: dict[str, Any]
    output: Output
    sidecar: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be done.

    recorded: the sidecar that is repeated, if any. classes: kind of record -> class of the model's networks.
    adapters: LoRA files to put on the model, in order. compile, cuda_graphs: of `VideoPipeline.compile`.
    """

    model: str
    fps: float
    device: str | None
    dtype: str | None
    jobs: list[Job]
    recorded: dict[str, Any] | None = None
    classes: dict[str, str] = field(default_factory=dict)
    adapters: list[AdapterChoice] = field(default_factory=list)
    compile: bool = False
    cuda_graphs: bool = False
    engine: str = "torch"
    bundle: str | None = None

    @property
    def repeats_adapters(self) -> bool:
        """Whether the LoRAs are those of the sidecar, and not others that the user named."""
        return all(choice.sha256 is not None for choice in self.adapters)


def make_plan(wishes: Wishes) -> Plan:
    """Check everything that can be checked without the weights. Raises UserError."""
    recorded = None if wishes.sidecar is None else read_sidecar(wishes.sidecar)
    prompts = _prompts(wishes, recorded)
    model = wishes.model or (recorded["model"]["name"] if recorded else "tiny")
    folder = resolve_folder(model)
    _, defaults = read_defaults(folder)
    engine, bundle = _engine(wishes, recorded)
    if bundle is not None:
        defaults = defaults.model_copy(update=read_size(bundle))
    configs = {name: _config(folder, name) for name in ("vae", "denoiser")}
    geometry = Geometry.from_configs(configs["vae"], configs["denoiser"])

    before: dict[str, Any] = recorded["settings"] if recorded else {}
    width, height = (None, None) if wishes.size is None else parse_size(wishes.size)
    num_frames = geometry.check_num_frames(
        _first(wishes.num_frames, before.get("num_frames"), defaults.num_frames)
    )
    height, width = geometry.check_size(
        _first(height, before.get("height"), defaults.height),
        _first(width, before.get("width"), defaults.width),
    )
    geometry.check_budget(1, num_frames, height, width)
    sampler = check_sampler(_first(wishes.sampler, before.get("sampler"), defaults.sampler)).name
    seeds = check_seeds(_first(wishes.seed, before.get("seed"), defaults.seed), len(prompts))
    negative = check_prompts(_first(wishes.negative, before.get("negative_prompt"), ""), "negative")[0]
    fps = _first(wishes.fps, recorded["fps"] if recorded else None, defaults.fps)
    if not math.isfinite(fps):
        raise UserError(
            f"`fps` must be a finite number of frames a second, got {fps}; {defaults.fps} is usual"
        )
    check_fps(fps)
    shared: dict[str, Any] = {
        "negative_prompt": negative,
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "num_inference_steps": check_steps(
            _first(wishes.steps, before.get("num_inference_steps"), defaults.steps)
        ),
        "guidance_scale": check_guidance(
            _first(wishes.guidance, before.get("guidance_scale"), defaults.guidance)
        ),
        "sampler": sampler,
        "smooth": _first(wishes.smooth, before.get("smooth"), True),
    }
    step_cache = _first(wishes.step_cache, before.get("step_cache"))
    if step_cache is not None and step_cache != "none":
        check_step_cache(step_cache)
        shared["step_cache"] = step_cache
    dtype = _first(wishes.dtype, recorded["device"]["dtype"] if recorded else None)
    dtype = None if dtype in (None, "auto") else check_dtype_name(dtype)
    kind = recorded["output"]["kind"] if recorded else "png" if num_frames == 1 else "mp4"
    where = recorded["device"] if recorded else {}
    if wishes.cuda_graphs and wishes.compile is False:
        raise UserError("`--cuda-graphs` replays compiled blocks; leave --no-compile out")
    many = wishes.prompts_file is not None
    outputs = _outputs(prompts, wishes.output, kind, many, wishes.overwrite)
    jobs = [
        Job({"prompt": text, **shared, "seed": seed}, output, plan_sidecar(output))
        for text, seed, output in zip(prompts, seeds, outputs, strict=True)
    ]
    return Plan(
        model=model,
        fps=fps,
        device=_first(wishes.device, recorded["device"]["device"] if recorded else None),
        dtype=dtype,
        jobs=jobs,
        recorded=recorded,
        compile=bool(_first(wishes.compile, where.get("compiled"), wishes.cuda_graphs)),
        cuda_graphs=bool(_first(wishes.cuda_graphs, where.get("cuda_graphs"))),
        adapters=plan_adapters(wishes.loras, recorded.get("loras", ()) if recorded else ()),
        engine=engine,
        bundle=bundle,
        classes={PARTS[name].kind: str(c.get("_class_name")) for name, c in configs.items() if c is not None},
    )


def _engine(wishes: Wishes, recorded: dict[str, Any] | None) -> tuple[str, str | None]:
    """The engine's name and its bundle, from the options or the sidecar. Raises UserError."""
    from ea_runtime.plugins.host import get_host

    before = (recorded or {}).get("engine", {}) if wishes.engine is None and wishes.bundle is None else {}
    name = _first(wishes.engine, before.get("name"), "torch")
    bundle = _first(wishes.bundle, before.get("bundle"))
    if getattr(get_host().get("engines", name), "needs_bundle", False) and bundle is None:
        raise UserError(f"`--engine {name}` needs `--bundle FOLDER`, what `ea export --{name}` wrote")
    if bundle is not None and not Path(bundle).is_dir():
        raise UserError(f"`bundle` must be a folder that `ea export` wrote, got {str(bundle)!r}")
    return name, bundle


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of "672x384". Raises UserError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UserError(f"`size` must be WIDTHxHEIGHT in pixels such as 672x384, got {text[:60]!r}")
    return int(match[1]), int(match[2])


def slug(text: str, limit: int = 60) -> str:
    """A file name from a prompt: "A red circle!" -> "a-red-circle"; "video" where nothing is left."""
    words = re.findall(r"[a-z0-9]+", text[:1000].lower())
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word[:limit]
        if len(longer) > limit:
            break
        name = longer
    return name or "video"


def _prompts(wishes: Wishes, recorded: dict[str, Any] | None) -> list[str]:
    ways = [w is not None for w in (wishes.prompt, wishes.prompts_file)]
    if all(ways):
        raise UserError("give either a prompt or --prompts FILE, not both")
    if not any(ways):
        if recorded is None:
            raise UserError('a prompt is needed, for example: ea generate "a red circle moves right"')
        return check_prompts(recorded["settings"]["prompt"])
    if wishes.prompts_file is not None:
        if recorded is not None:
            raise UserError("give either --prompts FILE or --from, not both")
        return _read_prompts(Path(wishes.prompts_file))
    return check_prompts(wishes.prompt)


def _read_prompts(path: Path) -> list[str]:
    name = repr(str(path))
    try:
        if not path.is_file():
            raise UserError(f"there is no prompts file {name}; it holds one prompt a line")
        if path.stat().st_size > MAX_PROMPT_FILE:
            raise UserError(f"prompts file {name} has more than {MAX_PROMPT_FILE:,} bytes; split it")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"prompts file {name} must be UTF-8 text, one prompt a line") from error
    except OSError as error:
        raise UserError(f"prompts file {name} cannot be read: {error.strerror or error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"prompts file {name} holds no prompt; write one a line")
    return check_prompts(prompts)


def _outputs(
    prompts: Sequence[str], wish: str | None, kind: str, many: bool, overwrite: bool
) -> list[Output]:
    """One output for each prompt. Raises UserError where one cannot be written."""
    suffix = next((s for s, k in KINDS.items() if k == kind), "/")
    if not many:
        return [_default_output(slug(prompts[0]), suffix) if wish is None else plan_output(wish, overwrite)]
    digits = max(3, len(str(len(prompts))))
    if wish is None or wish.endswith(("/", os.sep)) or Path(wish).is_dir():
        folder = Path(wish or ".")
        names = [str(folder / f"{i:0{digits}}-{slug(p)}{suffix}") for i, p in enumerate(prompts, 1)]
    else:
        stem = Path(wish)
        names = [
            str(stem.with_name(f"{stem.stem}-{i:0{digits}}{stem.suffix}")) for i in range(1, len(prompts) + 1)
        ]
    return [plan_output(name, overwrite) for name in names]


def _default_output(name: str, suffix: str) -> Output:
    """The first free name here: nothing is replaced that the user did not name."""
    for number in range(1, 10_000):
        stem = name if number == 1 else f"{name}-{number}"
        path = Path(stem if suffix == "/" else f"{stem}{suffix}")
        sidecar = Path(f"{stem}.json")
        if not path.exists() and (not sidecar.exists() or describes(sidecar) not in (None, path.name)):
            return plan_output(f"{path}/" if suffix == "/" else path)
    raise UserError(f"10,000 files called {name!r} are here already; give a name with -o")


def _config(folder: Path, part: str) -> dict[str, Any] | None:
    """A part's config.json, or None where it is missing: loading the model says so better."""
    name = f"{PARTS[part].folder}/config.json"
    return read_json(folder, name) if is_file(inside(folder, name)) else None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
