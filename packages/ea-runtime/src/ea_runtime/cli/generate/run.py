"""`ea generate`, step by step: load, put LoRAs on, make each video, write its sidecar, compare."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer

from ea_runtime.cli.generate.forecast import watch_jobs

if TYPE_CHECKING:
    from rich.console import Console

    from ea_runtime.cli.generate.plan import Job, Plan
    from ea_runtime.generation.forecasts import Watch
    from ea_runtime.generation.making import Made
    from ea_runtime.generation.pipeline import VideoPipeline
    from ea_runtime.generation.requests import ModelRequest


def run(plan: Plan, console: Console, start: float, device: str | None) -> None:
    """Makes the plan's videos, one at a time. start: when the command began, by time.perf_counter."""
    todo = _unfinished(plan, console)
    if not todo:
        return
    _announce(plan, todo[0], console)  # before any import that takes time
    asked = plan.request
    watches = watch_jobs(plan, todo, device, console)
    form = next((one.forecast.way.quantize for one in watches.values() if one.forecast.way.quantize), None)
    if form is not None:  # the plan keeps weights in fewer bits, which the record says
        asked = replace(asked, quantize=form)
        plan = replace(plan, request=asked)

    from rich.markup import escape

    from ea_runtime.cli.generate.progress import GenerationProgress
    from ea_runtime.generation.making import ModelHash, device_name, timed
    from ea_runtime.generation.spread import rank, share_out
    from ea_runtime.machine.allocator import tune_allocator
    from ea_runtime.machine.light_imports import without_collecting

    tune_allocator()
    shared: dict[str, float] = {}
    with GenerationProgress(console) as progress, timed("imports", shared), without_collecting():
        imports = _imports(plan)
        for done, load in enumerate(imports):
            progress.on_step("imports", done, len(imports))
            load()
        progress.on_step("imports", len(imports), len(imports))
    from ea_runtime.generation.pipeline import VideoPipeline
    from ea_runtime.machine.device import dtype_name

    with console.status(escape(f"loading {asked.model}")), timed("loading", shared):
        pipe = VideoPipeline.from_pretrained(
            asked.model,
            device=device,
            dtype=asked.dtype,
            engine=asked.engine,
            bundle=asked.bundle,
            quantize=asked.quantize,
            attention=asked.attention,
            offload=_offload(asked, watches.get(todo[0])),
        )
        _same_threads(plan, pipe)
        share_out(pipe)
        model_sha256 = ModelHash(asked.model)
        if watches:
            watches[todo[0]].prepare(pipe)
    with timed("adapters", shared):
        handles, adapters = _put_on(plan.jobs[todo[0]], pipe, console)
    if not adapters:
        del shared["adapters"]
    if asked.compile:
        pipe.compile(asked.cuda_graphs)
    console.print(f"on {device_name(pipe)}, {dtype_name(pipe.dtype)}", markup=False, soft_wrap=True)
    for before, number in zip((None, *todo), todo, strict=False):
        job = plan.jobs[number]
        if before is not None:
            _announce(plan, number, console)
        if before is not None and job.adapters != plan.jobs[before].adapters:
            for handle in reversed(handles):
                handle.unload()
            handles, adapters = _put_on(job, pipe, console)
        timings = dict(shared) if before is None else {}
        if rank() > 0:
            _assist(pipe, job)
            continue
        made = _make(plan, pipe, job, console, timings, model_sha256, adapters, watches.get(number))
        timings = made.timings
        timings["total"] = time.perf_counter() - start
        start = time.perf_counter()
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timings.items())
        console.print(f"{parts} · {job.sidecar}", markup=False, style="dim", soft_wrap=True)
        _tell_joins(made, console)
        if before is None and number in watches and not plan.resume:  # later peaks would be those before
            console.print(watches[number].compare(timings, pipe), markup=False, style="dim", soft_wrap=True)
        _compare(plan, job, made, console)
        typer.echo(job.output.path)


def _unfinished(plan: Plan, console: Console) -> list[int]:
    """The numbers of the jobs that are to be done. Says which are complete, and where an ended run is saved."""
    from ea_runtime.errors import UserError
    from ea_runtime.generation.run_files import read_state, remove_state, state_folder

    for job in plan.jobs:
        folder = state_folder(job.output.path)
        if job.is_finished:
            console.print(f"{job.output.path} is complete already", markup=False, soft_wrap=True)
            remove_state(folder)
            typer.echo(job.output.path)
            continue
        line = ""
        try:
            found = read_state(folder)
            if found is not None and not plan.resume:
                line = (
                    f"{folder} holds a saved run ({found.summary}): --resume continues it, this starts over"
                )
            elif found is None and plan.resume and len(plan.jobs) == 1:
                line = f"nothing is saved in {folder}: this starts at the beginning"
        except UserError as error:
            line = "" if plan.resume else f"{error}; this starts over"
        if line:
            console.print(f"note: {line}", style="yellow", markup=False, soft_wrap=True)
    return [number for number, job in enumerate(plan.jobs) if not job.is_finished]


def _imports(plan: Plan) -> list[Callable[[], Any]]:
    """The steps that import what the run needs, so that none is counted as loading or denoising."""
    from ea_runtime.machine.light_imports import import_diffusers
    from ea_runtime.plugins.host import get_host

    host = get_host()
    records = [host.get("samplers", plan.jobs[0].settings["sampler"])]
    records += [host.find_class(kind, name) for kind, name in plan.classes.items()]
    return [
        lambda: import_module("torch"),
        import_diffusers,
        lambda: import_module("ea_runtime.generation.pipeline"),
        lambda: import_module("ea_runtime.text.t5"),
        lambda: import_module("transformers").PreTrainedTokenizerFast,
        *(record.build for record in records if record is not None),  # loading reports one that is missing
    ]


def _offload(request: ModelRequest, watch: Watch | None) -> str:
    """The kind of offloading: the plan's, unless one is asked for."""
    if request.offload not in (None, "auto"):
        return request.offload
    return "none" if watch is None or request.compile else watch.forecast.way.offload


def _assist(pipe: VideoPipeline, job: Job) -> None:
    """The work of processes other than the first: the same, nothing written."""
    from ea_runtime.generation.decoding import frames_of

    for _ in frames_of(pipe, pipe(**job.settings, output="latents")):
        pass


def _make(
    plan: Plan,
    pipe: VideoPipeline,
    job: Job,
    console: Console,
    timings: dict[str, float],
    model_sha256: Callable[[], str],
    adapters: list[dict[str, Any]],
    watch: Watch | None,
) -> Made:
    """Makes one video and its sidecar, under a bar for each phase; an ended run's place stays saved."""
    from ea_runtime.cli.generate.progress import GenerationProgress
    from ea_runtime.generation.making import make_video
    from ea_runtime.generation.run_files import state_folder
    from ea_runtime.generation.run_state import RunState
    from ea_runtime.generation.spread import world_size

    run = None
    if world_size() == 1:  # several would have to save and load together
        run = RunState(state_folder(job.output.path), resume=plan.resume, must_match=True)
    try:
        with GenerationProgress(console) as progress:
            return make_video(
                pipe,
                replace(plan.request, **job.settings),
                job.output,
                job.sidecar,
                model_sha256=model_sha256,
                adapters=adapters,
                has_recipe=plan.has_recipe,
                signing=plan.signing,
                timings=timings,
                on_step=progress.on_step if watch is None else watch.on_step(pipe, progress.on_step),
                run=run,
            )
    except BaseException:
        if run is not None and run.is_open:
            console.print(
                f"saved in {run.folder}: the same command with --resume continues this run",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        raise


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
    if plan.num_windows > 1:
        what += f" in {plan.num_windows} windows"
    kind = " as a contact sheet" if job.output.kind == "png" and s["num_frames"] > 1 else ""
    console.print(
        f"{plan.request.model}: {what}{kind}, {s['width']}x{s['height']}, {steps} {s['sampler']}, "
        f"guidance {s['guidance_scale']:g}, seed {s['seed']}",
        markup=False,
        soft_wrap=True,
    )


def _tell_joins(made: Made, console: Console) -> None:
    """Prints the measures of the join with the largest change of colour, if there are joins."""
    from ea_runtime.video.measures import worst_join

    if joins := made.record.get("joins"):
        worst = worst_join(joins)
        console.print(
            f"worst of {len(joins)} join{'s' * (len(joins) > 1)}: frame {worst['frame']}, colour dE "
            f"{worst['delta_e']:.2f}, sharpness x{worst['sharpness']:.2f}, flow jump {worst['flow_jump']:.2f} px",
            markup=False,
            soft_wrap=True,
        )


def _same_threads(plan: Plan, pipe: VideoPipeline) -> None:
    """On a CPU the order of sums, and so the last bits, depend on the number of threads."""
    import torch

    threads = None if plan.recorded is None else plan.recorded["device"].get("threads")
    if pipe.device.type == "cpu" and isinstance(threads, int) and 1 <= threads <= 4 * (os.cpu_count() or 1):
        torch.set_num_threads(threads)


def _compare(plan: Plan, job: Job, made: Made, console: Console) -> None:
    """Reports if a repeated run gave the recorded file, and if not what differs."""
    if plan.recorded is None or plan.recorded["output"]["kind"] != job.output.kind:
        return
    old, new = plan.recorded, made.record
    same = old["settings"] == new["settings"] and old["fps"] == new["fps"]
    loras = [[(one["sha256"], one["weight"]) for one in side.get("loras", ())] for side in (old, new)]
    if not same or (loras[0] != loras[1] and not plan.repeats_adapters):
        return
    recorded = old["output"].get("unsigned_sha256") or old["output"]["sha256"]
    if not recorded:  # an output that was signed, without its sidecar
        return
    if recorded == made.sha256:
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
