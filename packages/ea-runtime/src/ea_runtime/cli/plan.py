"""`ea plan`: memory and time of a generation, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ea_runtime.cli.options import Offload, Quantize

app = typer.Typer(add_completion=False)

_OWN = "Default: the model's own."


@app.command()
def plan(
    prompt: Annotated[
        str | None, Argument(help="Prompt; only its length counts.", show_default=False)
    ] = None,
    model: Annotated[str | None, Option(help="tiny (bundled) or a model folder. Default: tiny.")] = None,
    num_frames: Annotated[int | None, Option(help=f"Frames; 1 is a picture. {_OWN}")] = None,
    window: Annotated[int | None, Option(help=f"Frames denoised at once, of a longer video. {_OWN}")] = None,
    size: Annotated[str | None, Option(help=f"WIDTHxHEIGHT in pixels. {_OWN}")] = None,
    num_inference_steps: Annotated[
        int | None, Option("--steps", help=f"Steps of the sampler. {_OWN}")
    ] = None,
    guidance_scale: Annotated[
        float | None, Option("--guidance", help=f"Guidance; 1 is off, and half the work. {_OWN}")
    ] = None,
    batch: Annotated[int, Option(help="Videos made together (1).")] = 1,
    image: Annotated[str | None, Option(help="Picture that the video starts with.")] = None,
    video: Annotated[str | None, Option(help="Video to change.")] = None,
    strength: Annotated[float | None, Option(help="How much of --video is made anew, above 0 to 1.")] = None,
    smooth: Annotated[
        bool | None, Option("--smooth/--no-smooth", help="Smooth the seams between chunks of frames (on).")
    ] = None,
    step_cache: Annotated[str | None, Option(help="As in ea generate, such as teacache:0.1.")] = None,
    quantize: Quantize = None,
    lora: Annotated[list[str] | None, Option(help="LoRA file, as in ea generate; repeatable.")] = None,
    device: Annotated[
        str | None, Option(help="cpu, cuda, cuda:N or mps. Default: the best available.")
    ] = None,
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or float16. Default: by device.")] = None,
    engine: Annotated[str | None, Option(help="torch, the only one that can be planned.")] = None,
    memory: Annotated[
        str | None,
        Option(help="Count this much as free on the device, such as 24GiB. Default: what is free."),
    ] = None,
    offload: Offload = None,
    target: Annotated[
        str | None, Option("--output", "-o", help="File that would be written: only its ending counts.")
    ] = None,
    calibrate: Annotated[
        bool, Option("--calibrate", help="First measure this machine, about 10 s; remembered.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell the memory and time that a generation takes, before anything is loaded.

    Exit code 0: it fits, 1: it does not, 2: the request is wrong.
    """
    from ea_runtime.generation.requests import ModelRequest

    arguments = {name: value for name, value in locals().items() if name != "ModelRequest"}
    forecast = _forecast(ModelRequest.of(arguments), size, batch, memory, target, calibrate)
    if as_json:
        typer.echo(json.dumps(forecast.as_dict(), indent=2))
    else:
        _show(forecast)
    if not forecast.fits:
        raise typer.Exit(1)


def _forecast(
    request: Any, size: str | None, batch: int, memory: str | None, target: str | None, calibrate: bool
) -> Any:
    from ea_runtime.generation.adapters import plan_adapters
    from ea_runtime.generation.forecasts import forecast_request
    from ea_runtime.generation.resolve import resolve
    from ea_runtime.models.geometry import check_int
    from ea_runtime.planning.parts import read_lora
    from ea_runtime.planning.room import parse_memory
    from ea_runtime.video.output import KINDS

    check_int("batch", batch, 1, 1024)
    room = None if memory is None else parse_memory(memory)
    resolved = resolve(request, size=size)
    adapters = plan_adapters(request.lora)
    for one in adapters:
        read_lora(Path(one.path))  # here a file that cannot be read is an error
    target = target or ("out.png" if resolved.request.num_frames == 1 else "out.mp4")
    if calibrate:
        from ea_runtime.generation.measure_machine import calibrate as measure
        from ea_runtime.planning.room import find_room

        measure(find_room(resolved.request.device).kind)
    return forecast_request(
        resolved.request,
        resolved.folder,
        adapters=adapters,
        batch=batch,
        memory=room,
        kind=KINDS.get(Path(target).suffix.lower(), "folder"),
    )


def _show(forecast: Any) -> None:
    from ea_runtime.machine.terminal import make_console
    from ea_runtime.planning.words import lines, table, what

    console = make_console(highlight=False)
    console.print(what(forecast), markup=False, soft_wrap=True)
    console.print()
    console.print(table(forecast))
    console.print()
    for line in lines(forecast):
        console.print(line, markup=False, soft_wrap=True)
