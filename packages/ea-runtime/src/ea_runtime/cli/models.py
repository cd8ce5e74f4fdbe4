"""`ea models`: what models there are, whether a folder loads, pickles made safetensors, motion modules moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ea_runtime.files.safe import plain

if TYPE_CHECKING:
    from ea_runtime.models.check import FolderReport, PartReport

app = typer.Typer(help="List, check and convert model folders; move motion modules.", no_args_is_help=True)

_SHOWN = 5


@app.command("list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the bundled models and those in the folder that EA_MODELS_DIR names."""
    from ea_runtime.models.layout import IMAGE_ENCODER, PARTS, known_models

    rows: list[dict[str, Any]] = []
    for name, folder, origin in known_models():
        files = [path for path in folder.rglob("*") if path.is_file()]
        folders = {spec.name: spec.folder for spec in PARTS.values()} | {"image_encoder": IMAGE_ENCODER}
        parts = [part for part, name in folders.items() if (folder / name / "config.json").is_file()]
        size = sum(path.stat().st_size for path in files)
        rows.append({"name": name, "from": origin, "folder": str(folder), "bytes": size, "parts": parts})
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    from ea_runtime.machine.terminal import make_console

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("name", "from", "size", "parts", "folder"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["from"], _size(row["bytes"]), ", ".join(row["parts"]), row["folder"])
    make_console().print(table)
    if not rows:
        typer.echo("no model is installed; give a model folder to the other commands")


@app.command()
def check(
    folder: Annotated[str, typer.Argument(help="A model folder, or the name of an installed model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every tensor name.")] = False,
) -> None:
    """Check a model folder: its parts, and if it loads. Exit code 0: yes, 1: no, 2: no such folder.

    Only headers are read, so this is quick for weights of any size.
    """
    from ea_runtime.models.check import check_folder

    report = check_folder(folder)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report)
    if not report.is_loadable:
        raise typer.Exit(1)


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="A model folder with pickled weights, or one such file.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A new folder for the result; default: next to the originals."),
    ] = None,
) -> None:
    """Convert pickled weights (.bin, .pt, .pth, .ckpt) to safetensors. The originals are kept.

    A pickle can hold code. It is read in a separate process that accepts only tensors.
    """
    from ea_runtime.models.convert import convert_file, convert_folder

    written = [convert_file(folder, output)] if folder.is_file() else convert_folder(folder, output)
    for item in written:
        typer.echo(
            f"{item.source.name} -> {item.target}: {item.num_tensors} tensors, {_size(item.num_bytes)}"
        )
        if item.skipped:
            typer.echo(f"  left out, no tensors: {', '.join(plain(name) for name in item.skipped)}")
    if not written:
        typer.echo("nothing to convert: no part of this folder is pickled")


@app.command("extract-motion")
def extract_motion(
    model: Annotated[
        str, typer.Argument(help="A model folder, its transformer folder, or an installed model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new .safetensors file.")],
) -> None:
    """Write a model's motion modules to one file, bit-exact."""
    for line in _motion_tools(model).extract_motion(model, output):
        typer.echo(plain(line, 400))


@app.command("insert-motion")
def insert_motion(
    motion: Annotated[
        Path, typer.Argument(help="A file of extract-motion, or EasyAnimate V1's motion file.")
    ],
    model: Annotated[
        str, typer.Argument(help="A model folder, its transformer folder, or an installed model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the model.")],
) -> None:
    """Write a copy of a model with the motion modules of a file, and report the matches."""
    for line in _motion_tools(model).insert_motion(motion, model, output):
        typer.echo(plain(line, 400))


def _motion_tools(model: str) -> Any:
    """The tools for motion modules of the denoiser's package. Raises UserError if it has none."""
    from ea_runtime.errors import UserError
    from ea_runtime.models.loading import denoiser_of, find_record
    from ea_runtime.plugins.host import get_host

    found = denoiser_of(model)
    record: Any = find_record(get_host(), found.spec, found.class_name)
    if record.motion is None:
        raise UserError(f"the denoiser {record.name!r} of this model has no motion modules to move")
    return record.motion()


def _show(report: FolderReport) -> None:
    from rich.markup import escape

    from ea_runtime.machine.terminal import make_console

    console = make_console(highlight=False)
    console.print(f"model folder {escape(report.folder)}", soft_wrap=True)
    for part in report.parts:
        _show_part(console, part)
    for note in report.notes:
        console.print(f"[yellow]note[/yellow]     {escape(note)}", soft_wrap=True)
    for problem in report.problems:
        console.print(f"[red]problem[/red]  {escape(problem)}", soft_wrap=True)
    _show_memory(console, report.memory)
    verdict = (
        "[green]this folder loads[/green]" if report.is_loadable else "[red]this folder does not load[/red]"
    )
    console.print(verdict)


def _show_part(console: Any, part: PartReport) -> None:
    from rich.markup import escape

    state = "[green]ok[/green]" if part.state == "ok" else f"[red]{escape(part.state)}[/red]"
    console.print(f"[bold]{part.folder}[/bold]  {state}", soft_wrap=True)
    if part.class_name:
        console.print(f"  class       {part.class_name}" + (f" ({part.package})" if part.package else ""))
    if part.num_tensors:
        parameters = f", {part.num_parameters:,} parameters" if part.num_parameters else ""
        dtypes = ", ".join(
            f"{name} {count / max(part.num_values, 1):.0%}" for name, count in part.dtypes.items()
        )
        files = f"{len(part.files)} file" + "s" * (len(part.files) != 1)
        sizes = f"{part.num_tensors:,} tensors{parameters}, {_size(part.num_bytes)} in {files}, {dtypes}"
        console.print(f"  weights     {sizes}", soft_wrap=True)
    wrong = [f"{item['name']} must be {item['expected']}, is {item['got']}" for item in part.wrong_shape]
    findings = {
        "missing": part.missing,
        "unexpected": part.unexpected,
        "wrong shape": wrong,
        "config keys": [f"{name} (ignored)" for name in part.unknown_keys],
    }
    for label, names in findings.items():
        if names:
            shown = "; ".join(plain(name) for name in names[:_SHOWN])
            more = f"; and {len(names) - _SHOWN} more (--json lists all)" if len(names) > _SHOWN else ""
            console.print(f"  {label:<11} {len(names)}: {escape(shown + more)}", soft_wrap=True)
    if part.pickles:
        names = escape(", ".join(plain(name) for name in part.pickles[:_SHOWN]))
        console.print(
            f"  [yellow]pickles     {len(part.pickles)}: {names} (never loaded)[/yellow]", soft_wrap=True
        )


def _show_memory(console: Any, memory: dict[str, Any]) -> None:
    if not memory:
        return
    weights = dict(memory["weights"])
    picture = weights.pop("image_encoder", None)
    total = {name: sum(part[name] for part in weights.values()) for name in ("fp32", "bf16")}
    console.print(f"memory of the weights: {_size(total['fp32'])} in fp32, {_size(total['bf16'])} in bf16")
    if picture is not None:
        console.print(
            f"  image_encoder: {_size(picture['fp32'])} of the CPU's memory while a picture is encoded"
        )
    denoise, decode = memory["denoise_estimate"], memory["decode_estimate"]
    for what, item in (("denoising, with guidance", denoise), ("decoding, chunk by chunk", decode)):
        sizes = item["bytes_by_dtype"]
        console.print(
            f"  estimate  {what}, {item['height']}x{item['width']}, {item['num_frames']} frames: "
            f"{_size(sizes['fp32'])} in fp32, {_size(sizes['bf16'])} in bf16 on top",
            soft_wrap=True,
        )


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"
