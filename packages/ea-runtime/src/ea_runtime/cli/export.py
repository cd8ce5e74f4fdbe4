"""`ea export`: a model becomes a bundle of ONNX graphs or TensorRT engines, with a parity report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

if TYPE_CHECKING:
    from rich.console import Console

    from ea_runtime.export.make import ExportResult

app = typer.Typer(add_completion=False)


@app.command()
def export(
    onnx: Annotated[bool, Option("--onnx", help="ONNX graphs, for `--engine onnx`.")] = False,
    trt: Annotated[bool, Option("--trt", help="TensorRT engines for this machine's GPU.")] = False,
    trt_rtx: Annotated[
        bool, Option("--trt-rtx", help="TensorRT-RTX engines, built ahead of time; needs no GPU.")
    ] = False,
    model: Annotated[str, Option(help="tiny (bundled) or a model folder.")] = "tiny",
    part: Annotated[
        list[str] | None, Option(help="vae-decoder, vae-encoder, dit or text; repeatable. Default: all.")
    ] = None,
    size: Annotated[str | None, Option(help="WIDTHxHEIGHT in pixels. Default: the model's own.")] = None,
    num_frames: Annotated[
        int | None, Option(help="Frames; 1 is a picture. Default: the model's own.")
    ] = None,
    batch: Annotated[
        int | None,
        Option(help="Rows of a denoising pass; 2: guidance in one pass. Default: depends on size."),
    ] = None,
    dtype: Annotated[
        str | None, Option(help="fp32, fp16 or bf16. Default: fp32 for ONNX, fp16 otherwise.")
    ] = None,
    opset: Annotated[int | None, Option(help="20 to 23. Default: by target.")] = None,
    capability: Annotated[
        list[str] | None,
        Option(help="For --trt-rtx: sm75, sm80, sm86, sm89, sm120, sm121; repeatable. Default: sm89."),
    ] = None,
    memory_limit: Annotated[float | None, Option(help="For --trt and --trt-rtx: GB of workspace.")] = None,
    refit: Annotated[
        bool | None,
        Option(
            "--refit/--no-refit",
            help="For --trt and --trt-rtx: weights can be changed (LoRA). Default: with a GPU.",
        ),
    ] = None,
    parity: Annotated[str, Option(help="auto: compare with PyTorch if a CPU can; off: do not.")] = "auto",
    output: Annotated[
        str | None, Option("--output", "-o", help="The bundle's folder. Default: MODEL-TARGET.")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a bundle of that name.")] = False,
) -> None:
    """Export a model to ONNX or TensorRT, with a parity report."""
    from pathlib import Path

    from ea_runtime.cli.generate.notes import notes_on
    from ea_runtime.errors import UserError
    from ea_runtime.generation.resolve import parse_size
    from ea_runtime.machine.terminal import make_console

    targets = [name for name, wanted in (("onnx", onnx), ("trt", trt), ("trt-rtx", trt_rtx)) if wanted]
    if len(targets) != 1:
        got = " and ".join(f"--{name}" for name in targets) or "none"
        raise UserError(f"give one of --onnx, --trt and --trt-rtx, got {got}")
    width, height = (None, None) if size is None else parse_size(size)
    if memory_limit is not None and not 0.01 <= memory_limit <= 10_000:
        raise UserError(f"`memory-limit` must be from 0.01 to 10000 GB, got {memory_limit:g}")
    if targets[0] != "trt-rtx" and capability:
        raise UserError("`capability` is for --trt-rtx: TensorRT builds for this machine's GPU; leave it out")
    console = make_console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with notes_on(console), console.status("loading torch") as status:
        from ea_runtime.export.make import ExportRequest, export_bundle

        request = ExportRequest(
            model=model,
            output=output or f"{Path(model).name}-{targets[0]}",
            target=targets[0],
            parts=None if not part else tuple(part),
            num_frames=num_frames,
            height=height,
            width=width,
            rows=batch,
            dtype=dtype,
            opset=opset,
            parity=parity,
            capabilities=tuple(capability or ()),
            memory_limit=None if memory_limit is None else int(memory_limit * 1e9),
            refittable=refit,
            overwrite=overwrite,
        )
        result = export_bundle(request, lambda step, what: status.update(f"{step} {what}"))
    _show(console, result)
    typer.echo(result.folder)


def _show(console: Console, result: ExportResult) -> None:
    report = result.report
    console.print(f"{report['model']}, {report['size']}, {report['dtype']}, opset {report['opset']}")
    for one in [*report["parity"], *report["canaries"]]:
        worst = max((error["relative"] for error in one["outputs"]), default=None)
        text = one["state"] if worst is None else f"relative error {worst:.2g} to PyTorch"
        bad = worst is not None and worst > report["limit"]
        style = "red" if bad else "yellow" if worst is None else None
        console.print(f"  {one['graph']:<32} {text}", style=style)
    for name, built in report["builds"].items():
        memory = built["activation_bytes"]
        shown = "unknown" if memory is None else f"{memory / 1e9:.3f} GB"
        size = f"{built['engine_bytes'] / 1e6:.1f} MB"
        console.print(f"  {name:<32} engine {size}, activation memory {shown}")
    for note in report["preflight"]["notes"]:
        console.print(f"note: {note}", style="yellow")
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in report["seconds"].items())
    console.print(f"{seconds} · {result.folder / 'report.html'}", style="dim")
