"""`ea generate`: a prompt becomes a video or a picture, with a sidecar that makes it again."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from ea_runtime.cli.generate.run import run
from ea_runtime.cli.options import Offload, Quantize

if TYPE_CHECKING:
    from ea_runtime.cli.generate.plan import Plan
    from ea_runtime.generation.requests import ModelRequest

app = typer.Typer(add_completion=False)

_OWN = "Default: the model's own."
_OUTPUT = (
    "out.mp4, .mov, .webm, .webp, .gif, .png (1 frame: a picture; more: a contact sheet) or frames/. "
    "Default: named after the prompt."
)


@app.command()
def generate(
    prompt: Annotated[str | None, Argument(help="Prompt.", show_default=False)] = None,
    model: Annotated[str | None, Option(help="tiny (bundled) or a model folder. Default: tiny.")] = None,
    num_frames: Annotated[int | None, Option(help=f"Frames; 1 is a picture. {_OWN}")] = None,
    size: Annotated[
        str | None, Option(help=f"WIDTHxHEIGHT in pixels, or auto: like --image or --video. {_OWN}")
    ] = None,
    prompts_at: Annotated[
        str | None,
        Option(
            help="Prompts by time, in seconds or frames: '0s: a red circle | 1.5s: a blue one | 36f: ...'."
        ),
    ] = None,
    loop: Annotated[
        bool | None, Option("--loop/--no-loop", help="The last frames lead into the first (off).")
    ] = None,
    window: Annotated[
        int | None,
        Option(help=f"Frames that are denoised at once; longer videos are made in several windows. {_OWN}"),
    ] = None,
    join: Annotated[
        str | None,
        Option(help="How windows are joined: latents, or pixels (as V2's script does it). Default: latents."),
    ] = None,
    image: Annotated[str | None, Option(help="Picture that the video starts with.")] = None,
    image_end: Annotated[str | None, Option(help="Picture that the video ends with.")] = None,
    video: Annotated[
        str | None,
        Option(help="Video (or picture) to change, as far as --strength says, or where --mask is white."),
    ] = None,
    mask: Annotated[
        str | None, Option(help="Picture or video: white where --video is made anew, black where it is kept.")
    ] = None,
    strength: Annotated[
        float | None,
        Option(help="How much is made anew, above 0 to 1. Default: 0.6 for --video alone, else 1."),
    ] = None,
    fit: Annotated[
        str | None, Option(help="How pictures get the size: crop, pad or stretch. Default: crop.")
    ] = None,
    num_inference_steps: Annotated[
        int | None, Option("--steps", help=f"Steps of the sampler. {_OWN}")
    ] = None,
    guidance_scale: Annotated[
        float | None, Option("--guidance", help=f"How closely to follow the prompt; 1 is off. {_OWN}")
    ] = None,
    sampler: Annotated[
        str | None, Option(help="euler, euler-a, dpm++, pndm, ddim, unipc or a plugin's.")
    ] = None,
    seed: Annotated[
        str | None,
        Option(help="Seed of the noise, or random; with --prompts each prompt adds 1. " + _OWN),
    ] = None,
    negative_prompt: Annotated[
        str | None, Option("--negative", help="Negative prompt: what to avoid.")
    ] = None,
    prompts: Annotated[
        str | None, Option(help="File of prompts, one per line; outputs are numbered.")
    ] = None,
    fps: Annotated[float | None, Option(help=f"Frames per second of the file. {_OWN}")] = None,
    device: Annotated[
        str | None, Option(help="cpu, cuda, cuda:N or mps. Default: the best available.")
    ] = None,
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or float16. Default: by device.")] = None,
    engine: Annotated[
        str | None, Option(help="Engine that runs the networks: torch, onnx, trt, trt-rtx or a plugin's.")
    ] = None,
    bundle: Annotated[
        str | None,
        Option(help="Folder written by `ea export`, for engines other than torch; sets the default size."),
    ] = None,
    smooth: Annotated[
        bool | None, Option("--smooth/--no-smooth", help="Smooth the seams between chunks of frames (on).")
    ] = None,
    step_cache: Annotated[
        str | None,
        Option(help="Approximate: teacache:0.1 skips steps that would change little; none: run all steps."),
    ] = None,
    compile: Annotated[
        bool | None,
        Option(
            "--compile/--no-compile",
            help="torch.compile, block by block: pays off for many videos (off).",
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool | None,
        Option("--cuda-graphs/--no-cuda-graphs", help="With --compile on CUDA: blocks as graphs (off)."),
    ] = None,
    quantize: Quantize = None,
    attention: Annotated[
        str | None,
        Option(
            help="Backend that computes attention, if it is installed: native, flash, sage, ... (torch's own)."
        ),
    ] = None,
    offload: Offload = None,
    lora: Annotated[
        list[str] | None,
        Option(help="LoRA file, with a weight after a colon if not 1: style.safetensors:0.8; repeatable."),
    ] = None,
    lora_dir: Annotated[
        str | None, Option(help="Folder of LoRA files that prompts may name: <lora:style:0.8>.")
    ] = None,
    target: Annotated[str | None, Option("--output", "-o", help=_OUTPUT)] = None,
    sidecar: Annotated[
        str | None, Option("--from", help="An output or its .json: make that again; other options change it.")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace files of the same name.")] = False,
    resume: Annotated[
        bool, Option("--resume", help="Continue a run that was ended: give its command again with this.")
    ] = False,
    force: Annotated[
        bool, Option("--force", help="Try it even if memory seems too small; makes no plan.")
    ] = False,
    metadata: Annotated[
        bool, Option("--metadata/--no-metadata", help="Write into the file how it was made (on).")
    ] = True,
    sign: Annotated[
        str | None,
        Option(help="PEM file of a private key and its certificates: sign the file (Content Credentials)."),
    ] = None,
) -> None:
    """Make a video (or, with --num-frames 1, a picture) from a prompt."""
    start = time.perf_counter()
    from ea_runtime.generation.requests import ModelRequest

    _generate(
        start,
        ModelRequest.of({**locals(), "seed": _seed(seed)}),
        size=size,
        prompts=prompts,
        lora_dir=lora_dir,
        sidecar=sidecar,
        target=target,
        overwrite=overwrite,
        resume=resume,
        force=force,
        metadata=metadata,
        sign=sign,
    )


def _generate(start: float, request: ModelRequest, **files: Any) -> None:
    from ea_runtime.cli.generate.notes import notes_on
    from ea_runtime.cli.generate.plan import make_plan
    from ea_runtime.generation.spread import joined, rank
    from ea_runtime.machine.terminal import make_console

    # of several processes the first speaks
    console = make_console(stderr=True, highlight=False, quiet=rank() > 0)
    with notes_on(console), _stopped_by_sigterm():
        plan = make_plan(request, **files)
        with joined(_device(plan)) as own_device:
            run(plan, console, start, own_device)


def _seed(text: str | None) -> int | None:
    """A seed as it is given; "random" and -1, as other programs have it, draw one. Raises UserError."""
    from ea_runtime.errors import UserError
    from ea_runtime.generation.requests import random_seed

    if text is None:
        return None
    if text.strip().lower() in ("random", "-1"):
        return random_seed()
    try:
        return int(text)
    except ValueError:
        raise UserError(f"`seed` must be a whole number or random, got {text[:40]!r}") from None


def _device(plan: Plan) -> str | None:
    """The device asked for; a recorded one only where this machine has it."""
    from ea_runtime.errors import UserError
    from ea_runtime.machine.device import choose_device

    device = plan.request.device
    if plan.recorded is None or device is None:
        return device
    try:
        choose_device(device)
    except UserError:
        if device != plan.recorded["device"]["device"]:
            raise
        return None
    return device


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does, so that nothing half-written stays behind."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: signals are somebody else's there
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
