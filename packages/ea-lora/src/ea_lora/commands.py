"""`ea lora`: info, verify, convert and merge. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ea_lora.verify import LoraReport

app = typer.Typer(
    no_args_is_help=True, help="Inspect LoRA files, measure their effect on a model, convert and merge them."
)

_BAR_WIDTH = 18
_File = Annotated[Path, typer.Argument(help="A LoRA file (.safetensors), or a folder of peft's.")]
_Model = Annotated[
    str, typer.Option("--model", "-m", help="A model folder, or the name of an installed model.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_NoText = Annotated[bool, typer.Option("--no-text", help="Skip the text encoder's layers.")]
_Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Shell pattern over module paths to leave out ('*attn_temporal*'); repeatable."),
]


@app.command()
def info(file: _File, as_json: _Json = False) -> None:
    """Show the contents of a LoRA file: layers, rank, alpha, metadata. Needs no model."""
    from ea_lora.verify import lora_info
    from ea_runtime.files.safe import quote

    found = lora_info(file)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    layers = ", ".join(f"{count} for the {part}" for part, count in found["layers"].items())
    base = f"{quote(found['base_model'] or 'unnamed')[1:-1]} {quote(found['base_hash'] or '')[1:13]}"
    training = ", ".join(f"{key} {value}" for key, value in found["training"].items())
    hashes = {None: "", True: "as recorded", False: "not the one recorded: the tensors were changed since"}
    rows = {
        "file": f"{quote(found['path'], 200)[1:-1]}, {found['bytes']:,} bytes, {_names(found['layout'])} layout",
        "layers": layers,
        "rank": ", ".join(map(str, found["ranks"])),
        "alpha": ", ".join(f"{alpha:g}" for alpha in found["alphas"]),
        "numbers": f"{found['parameters']:,} of {', '.join(found['dtypes'])}",
        "trigger": quote(", ".join(found["trigger_words"]), 200)[1:-1],
        "base": base if found["base_model"] or found["base_hash"] else "",
        "training": quote(training, 300)[1:-1],
        "note": "; ".join(found["notes"]),
        "warning": "" if found["is_trained"] else "every up matrix is 0: this LoRA changes nothing",
        "hash": hashes[found["hash_matches"]],
    }
    for label, text in rows.items():
        if text:
            typer.echo(f"{label:<9}{text}")
    for key, value in found["metadata"].items():
        typer.echo(f"  {quote(key)[1:-1]}: {quote(value, 200)[1:-1]}")


@app.command()
def verify(
    file: _File,
    model: _Model = "tiny",
    weight: Annotated[
        float, typer.Option(help="Weight of the LoRA when its effect on the output is measured.")
    ] = 1.0,
    no_text: _NoText = False,
    exclude: _Exclude = None,
    plot: Annotated[
        Path | None, typer.Option(help="Where to draw the norm of each block's change (.png).")
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every matched module, not blocks.")] = False,
    as_json: _Json = False,
) -> None:
    """Report the layers that a LoRA matches in a model and their change, by block; exit code 1 if nothing changes.

    The model is not changed.
    """
    from ea_lora.verify import verify_lora

    if plot is not None:
        from ea_lora.plot import check_plot

        check_plot(plot)
    report = verify_lora(model, file, weight, parts=_parts(no_text), exclude=exclude or ())
    if plot is not None:
        from ea_lora.plot import save_plot

        save_plot(plot, report)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report, keys)
    if not report.does_something:
        raise typer.Exit(1)


@app.command()
def merge(
    files: Annotated[
        list[str],
        typer.Argument(help="LoRA files, each with its weight after a colon: style.safetensors:0.8."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new model folder.")],
    model: _Model = "tiny",
    no_text: _NoText = False,
    exclude: _Exclude = None,
) -> None:
    """Write a new model folder with LoRAs merged into its weights (weight 1 unless given)."""
    from ea_lora.merge import merge_lora
    from ea_runtime.generation.adapters import parse_spec

    merged = merge_lora(
        model, [parse_spec(text) for text in files], output, parts=_parts(no_text), exclude=exclude or ()
    )
    for matching in merged.matchings:
        typer.echo(matching.summary())
    typer.echo(f"{merged.num_changed} tensors changed; wrote {merged.folder}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A LoRA file of any trainer, or a folder of peft's.")],
    target: Annotated[Path, typer.Argument(help="The new file (.safetensors); for --to peft a folder.")],
    to: Annotated[str, typer.Option(help="kohya (V2, A1111), diffusers, peft or comfyui.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="A model with the modules that the LoRA is for; their names are looked up in it.",
        ),
    ] = "tiny",
) -> None:
    """Write a LoRA in another layout. Tensors, alpha and metadata are kept: there and back loses nothing."""
    from ea_lora.convert import convert_lora

    done = convert_lora(source, target, to, model=model)
    typer.echo(f"{done.num_layers} layers from {_names(done.source)} to {done.target}; wrote {done.path}")


@app.command()
def memory(
    model: _Model = "tiny",
    size: Annotated[list[int] | None, typer.Option(help="Side of a square in pixels; repeatable.")] = None,
    num_frames: Annotated[list[int] | None, typer.Option(help="Frames; 1 is a picture; repeatable.")] = None,
    rank: Annotated[int, typer.Option(help="Rank of the LoRA.")] = 128,
    dtype: Annotated[str, typer.Option(help="Type to compute in: bf16, fp16 or fp32.")] = "bf16",
    offload: Annotated[int, typer.Option(help="Frozen blocks kept on the CPU.")] = 0,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing/--no-checkpointing", help="Gradient checkpointing.")
    ] = True,
    motion: Annotated[bool, typer.Option("--motion/--no-motion", help="Adapt the motion modules.")] = True,
) -> None:
    """Predict the device memory of training a LoRA, part by part, with one sample per step; only configs are read."""
    from ea_lora.estimate import memory_table
    from ea_runtime.machine.terminal import make_console
    from ea_runtime.models.layout import resolve_folder

    settings = {"rank": rank, "offload": offload, "checkpointing": checkpointing, "motion": motion}
    folder, sizes = resolve_folder(model), size or [512, 768]
    make_console().print(memory_table(folder, sizes, num_frames or [1], dtype=dtype, **settings))


def _names(layout: str) -> str:
    return "another trainer's" if layout == "other" else layout


def _parts(no_text: bool) -> tuple[str, ...]:
    return ("denoiser",) if no_text else ("denoiser", "text")


def _show(report: LoraReport, keys: bool) -> None:
    from rich.table import Table

    from ea_runtime.files.safe import quote
    from ea_runtime.machine.terminal import make_console

    console = make_console(highlight=False)
    for line in (report.summary, *(f"note: {note}" for note in report.notes)):
        console.print(line, markup=False, soft_wrap=True)
    unused = {"ignored": report.ignored, "left out": report.left_out if keys else ()}
    for why, names in unused.items():
        for name in names:
            console.print(f"{why}: {quote(name, 300)[1:-1]}", markup=False, soft_wrap=True)
    if keys:
        rows = [(one.part, one.path, f"{one.rank}", one.norm, one.relative) for one in report.layers]
    else:
        rows = [(one.part, one.block, f"{one.num_layers}", one.norm, one.relative) for one in report.blocks]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("module", "rank") if keys else ("block", "layers"):
        table.add_column(column, justify="right" if column in ("rank", "layers") else "left", no_wrap=True)
    for column in ("change", "relative"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    largest = max((norm for *_, norm, _ in rows), default=0.0) or 1.0
    for part, name, count, norm, relative in rows:
        bar = "█" * round(_BAR_WIDTH * norm / largest)
        shown = name if part == "denoiser" else f"{part}: {name}"
        table.add_row(shown, count, f"{norm:.4g}", f"{relative:.2%}", bar)
    console.print(table)
    for what, moved in report.probe.items():
        probe = "text of random tokens" if what == "text" else f"{what} of noise"
        console.print(f"output on a {probe} moves by {moved:.2%} at weight {report.weight:g}")
    if not report.does_something:
        console.print("[red]this LoRA changes nothing: every change is 0[/red]")
