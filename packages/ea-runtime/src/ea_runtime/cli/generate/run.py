"""`ea generate`, step by step: load, put LoRAs on, make each video, write its sidecar, compare."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ea_runtime.generation.spread import world_size

if TYPE_CHECKING:
    from rich.console import Console

    from ea_runtime.cli.generate.plan import Job, Plan
    from ea_runtime.generation.pipeline import VideoPipeline
    from ea_runtime.generation.requests import ModelRequest


def run(plan: Plan, console: Console, start: float, device: str | None) -> None:
    """Makes the plan's videos, one at a time. start: when the command began, by time.perf_counter."""
    _announce(plan, 0, console)  # before any import that takes time
    asked = plan.request

    from rich.markup import escape

    from ea_runtime.cli.generate.progress import GenerationProgress
    from ea_runtime.generation.spread import rank, share_out
    from ea_runtime.machine.allocator import tune_allocator

    tune_allocator()
    shared: dict[str, float] = {}
    with GenerationProgress(console) as progress, _timed("imports", shared):
        imports = _imports(plan)
        for done, load in enumerate(imports):
            progress.on_step("imports", done, len(imports))
            load()
        progress.on_step("imports", len(imports), len(imports))
    from ea_runtime.generation.pipeline import VideoPipeline
    from ea_runtime.machine.device import dtype_name

    with console.status(escape(f"loading {asked.model}")), _timed("loading", shared):
        pipe = VideoPipeline.from_pretrained(
            asked.model, device=device, dtype=asked.dtype, engine=asked.engine, bundle=asked.bundle
        )
        _same_threads(plan, pipe)
        share_out(pipe)
        model_sha256 = _hashed(asked.model)
    with _timed("adapters", shared):
        handles, adapters = _put_on(plan.jobs[0], pipe, console)
    if not adapters:
        del shared["adapters"]
    if asked.compile:
        pipe.compile(asked.cuda_graphs)
    console.print(f"on {_where(pipe)}, {dtype_name(pipe.dtype)}", markup=False, soft_wrap=True)
    for number, job in enumerate(plan.jobs):
        if number:
            _announce(plan, number, console)
        if job.adapters != plan.jobs[max(number - 1, 0)].adapters:
            for handle in reversed(handles):
                handle.unload()
            handles, adapters = _put_on(job, pipe, console)
        timings = {} if number else dict(shared)
        if rank() > 0:
            _assist(pipe, job)
            continue
        digest = _make(plan, pipe, job, console, timings, model_sha256, adapters)
        timings["total"] = time.perf_counter() - start
        start = time.perf_counter()
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timings.items())
        console.print(f"{parts} · {job.sidecar}", markup=False, style="dim", soft_wrap=True)
        _compare(plan, job, digest, console)
        typer.echo(job.output.path)


def _imports(plan: Plan) -> list[Callable[[], Any]]:
    """The steps that import what the run needs, so that none is counted as loading or denoising."""
    from ea_runtime.plugins.host import get_host

    host = get_host()
    records = [host.get("samplers", plan.jobs[0].settings["sampler"])]
    records += [host.find_class(kind, name) for kind, name in plan.classes.items()]
    return [
        lambda: import_module("torch"),
        _import_diffusers,
        lambda: import_module("ea_runtime.generation.pipeline"),
        lambda: import_module("ea_runtime.text.t5"),
        lambda: import_module("transformers").PreTrainedTokenizerFast,
        *(record.build for record in records if record is not None),  # loading reports one that is missing
    ]


def _import_diffusers() -> None:
    """diffusers without torch._dynamo, which takes as long as torch; diffusers has a fallback for its one use."""
    blocked = "torch._dynamo" not in sys.modules
    if blocked:
        sys.modules["torch._dynamo"] = None  # pyright: ignore[reportArgumentType]
    try:
        import_module("diffusers.utils.torch_utils")
    finally:
        if blocked:
            del sys.modules["torch._dynamo"]


def _assist(pipe: VideoPipeline, job: Job) -> None:
    """The work of processes other than the first: the same, nothing written."""
    result = pipe(**job.settings, output="latents")
    settings = {"smooth": job.settings["smooth"], "num_frames": job.settings["num_frames"]}
    for _ in pipe.iter_frames(result.latents, seed=result.decode_seeds[0], **settings):
        pass


def _make(
    plan: Plan,
    pipe: VideoPipeline,
    job: Job,
    console: Console,
    timings: dict[str, float],
    model_sha256: Callable[[], str],
    adapters: list[dict[str, Any]],
) -> str:
    """Makes one video and its sidecar; returns the output's sha256, of a signed one that from before."""
    from ea_runtime.cli.generate.progress import GenerationProgress
    from ea_runtime.cli.generate.recipe import marks_of
    from ea_runtime.cli.generate.sidecar import versions, write_sidecar
    from ea_runtime.files.hashes import content_hash
    from ea_runtime.video.credentials import sign
    from ea_runtime.video.marks import Marks
    from ea_runtime.video.overlap import overlapped

    asked, settings = plan.request, job.settings
    count = settings["num_frames"]
    with GenerationProgress(console) as progress:
        result = pipe(**settings, output="latents", on_step=progress.on_step)
        timings |= result.timings | {"decoding": 0.0, "writing": 0.0}
        frames = pipe.iter_frames(
            result.latents, seed=result.decode_seeds[0], smooth=settings["smooth"], num_frames=count
        )
        record = _record(plan, pipe, job, model_sha256(), adapters)
        with (
            _timed("writing", timings),
            job.output.writer(asked.fps, count, marks_of(record) if plan.has_recipe else Marks()) as write,
            overlapped(write) as hand_in,
        ):
            progress.on_step("decoding", 0, count)
            done = 0
            while True:
                with _timed("decoding", timings):
                    frame = next(frames, None)
                if frame is None:
                    break
                hand_in(frame)
                done += 1
                progress.on_step("decoding", done, count)
    timings["writing"] -= timings["decoding"]  # decoding ran inside: what is left is waiting for the writer
    digest = content_hash(job.output.path)
    output = {
        "file": job.output.path.name,
        "kind": job.output.kind,
        "sha256": digest,
        "frames": count,
        "width": settings["width"],
        "height": settings["height"],
    }
    record |= {
        "versions": versions(),
        "output": output,
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
        "notes": result.notes,
    }
    write_sidecar(job.sidecar, record)
    if plan.signing is not None:
        sign(job.output.path, job.output.kind, plan.signing)
        output |= {"sha256": content_hash(job.output.path), "unsigned_sha256": digest}
        write_sidecar(job.sidecar, record)
    return digest


def _record(
    plan: Plan, pipe: VideoPipeline, job: Job, model_sha256: str, adapters: list[dict[str, Any]]
) -> dict[str, Any]:
    """What makes the video again, as its sidecar and the file itself have it."""
    import torch

    from ea_runtime.machine.device import dtype_name

    asked = plan.request
    is_path = os.sep in asked.model or Path(asked.model).is_dir()
    return {
        "settings": job.settings,
        "fps": asked.fps,
        "model": {"name": os.path.abspath(asked.model) if is_path else asked.model, "sha256": model_sha256},
        "device": {
            "device": str(pipe.device),
            "name": _where(pipe),
            "dtype": dtype_name(pipe.dtype),
            "threads": torch.get_num_threads(),
            **_unusual(plan),
        },
        **_engine_record(asked),
        **({"loras": adapters} if adapters else {}),
    }


def _unusual(plan: Plan) -> dict[str, Any]:
    """Unusual settings that change the last bits, besides device and threads."""
    rewrites = os.environ.get("EA_VAE_REWRITES") or "rule"
    given = {
        "processes": (world_size(), 1),
        "compiled": (plan.request.compile, False),
        "cuda_graphs": (plan.request.cuda_graphs, False),
        "vae_rewrites": (rewrites, "rule"),
    }
    return {name: value for name, (value, usual) in given.items() if value != usual}


def _put_on(job: Job, pipe: VideoPipeline, console: Console) -> tuple[list[Any], list[dict[str, Any]]]:
    """Puts the LoRAs on, says what matched, and returns their handles and what the sidecar says of them."""
    from ea_runtime.generation.adapters import describe_adapters, put_on

    handles = put_on(pipe, job.adapters)
    for handle in handles:
        console.print(f"{handle.summary}, weight {handle.weight:g}", markup=False, soft_wrap=True)
    return handles, describe_adapters(job.adapters, handles)


def _announce(plan: Plan, number: int, console: Console) -> None:
    """Prints the next job in a line that needs no torch; of several prompts also which."""
    job = plan.jobs[number]
    s = job.settings
    if len(plan.jobs) > 1:
        console.print(f"{number + 1}/{len(plan.jobs)} {s['prompt']}", markup=False, style="bold")
    what = "a picture" if s["num_frames"] == 1 else f"{s['num_frames']} frames at {plan.request.fps:g} fps"
    steps = f"{s['num_inference_steps']} step{'s' * (s['num_inference_steps'] > 1)}"
    kind = " as a contact sheet" if job.output.kind == "png" and s["num_frames"] > 1 else ""
    console.print(
        f"{plan.request.model}: {what}{kind}, {s['width']}x{s['height']}, {steps} {s['sampler']}, "
        f"guidance {s['guidance_scale']:g}, seed {s['seed']}",
        markup=False,
        soft_wrap=True,
    )


def _engine_record(asked: ModelRequest) -> dict[str, Any]:
    """The sidecar's entry for an engine other than torch."""
    if asked.engine == "torch":
        return {}
    bundle = {} if asked.bundle is None else {"bundle": os.path.abspath(asked.bundle)}
    return {"engine": {"name": asked.engine, **bundle}}


def _where(pipe: VideoPipeline) -> str:
    """Device, or what the sessions of an engine really run on."""
    from ea_runtime.machine.device import describe

    return pipe.engine.describe() if pipe.engine is not None else describe(pipe.device)


def _same_threads(plan: Plan, pipe: VideoPipeline) -> None:
    """On a CPU the order of sums, and so the last bits, depend on the number of threads."""
    import torch

    threads = None if plan.recorded is None else plan.recorded["device"].get("threads")
    if pipe.device.type == "cpu" and isinstance(threads, int) and 1 <= threads <= 4 * (os.cpu_count() or 1):
        torch.set_num_threads(threads)


def _hashed(model: str) -> Callable[[], str]:
    """The model's hash, counted while the video is made: a published text encoder has 20 GB."""
    from ea_runtime.models.hash import model_hash

    found: list[str] = []
    # daemon: Ctrl-C does not wait for it
    thread = threading.Thread(target=lambda: found.append(model_hash(model)), daemon=True)
    thread.start()

    def wait() -> str:
        thread.join()
        return found[0] if found else model_hash(model)

    return wait


def _compare(plan: Plan, job: Job, digest: str, console: Console) -> None:
    """Reports if a repeated run gave the recorded file, and if not what differs."""
    from ea_runtime.cli.generate.sidecar import read_sidecar

    if plan.recorded is None or plan.recorded["output"]["kind"] != job.output.kind:
        return
    old, new = plan.recorded, read_sidecar(job.sidecar)
    same = old["settings"] == new["settings"] and old["fps"] == new["fps"]
    loras = [[(one["sha256"], one["weight"]) for one in side.get("loras", ())] for side in (old, new)]
    if not same or (loras[0] != loras[1] and not plan.repeats_adapters):
        return
    recorded = old["output"].get("unsigned_sha256") or old["output"]["sha256"]
    if not recorded:  # an output that was signed, without its sidecar
        return
    if recorded == digest:
        console.print("same content as recorded", style="green", soft_wrap=True)
        return
    changed = [
        f"{n} {old['versions'][n]} -> {v}"
        for n, v in new["versions"].items()
        if old["versions"].get(n, v) != v
    ]
    changed += [
        f"{k} {old['device'].get(k, 'as usual')} -> {new['device'].get(k, 'as usual')}"
        for k in {**old["device"], **new["device"]}
        if old["device"].get(k) != new["device"].get(k)
    ]
    changed += ["a LoRA file"] if loras[0] != loras[1] else []
    changed += ["the model's files"] if old["model"]["sha256"] != new["model"]["sha256"] else []
    why = "; ".join(changed) or "nothing that is recorded"
    console.print(
        f"note: the content differs from the recorded one; changed: {why}",
        style="yellow",
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def _timed(name: str, timings: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - start
