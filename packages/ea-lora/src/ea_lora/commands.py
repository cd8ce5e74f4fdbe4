"""`ea lora`: info, verify and merge. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ea_lora.verify import LoraReport

app = typer.Typer(
    no_args_is_help=True, help="Look into LoRA files, prove what they do to a model, merge them."
)

_BAR_WIDTH = 18
_File = Annotated[Path, typer.Argument(help="A LoRA file (.safetensors).")]
_Model = Annotated[
    str, typer.Option("--model", "-m", help="A model folder, or the name of an installed model.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_NoText = Annotated[bool, typer.Option("--no-text", help="Leave the text encoder's layers out.")]
_Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Shell pattern over module paths to leave out ('*attn_temporal*'); repeatable."),
]


@app.command()
def info(file: _File, as_json: _Json = False) -> None:
    """Shows what a LoRA file holds: layers, rank, alpha, metadata. Needs no model."""
    from ea_lora.verify import lora_info
    from ea_runtime.safe_files import quote

    found = lora_info(file)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    layers = ", ".join(f"{count} for the {part}" for part, count in found["layers"].items())
    rows = {
        "file": f"{quote(found['path'], 200)[1:-1]}, {found['bytes']:,} bytes",
        "layers": layers,
        "rank": ", ".join(map(str, found["ranks"])),
        "alpha": ", ".join(f"{alpha:g}" for alpha in found["alphas"]),
        "numbers": f"{found['parameters']:,} of {', '.join(found['dtypes'])}",
    }
    if not found["is_trained"]:
        rows["warning"] = "every up matrix is 0: this LoRA changes nothing"
    if found["hash_matches"] is not None:
        rows["hash"] = (
            "as recorded" if found["hash_matches"] else "not the one recorded: the tensors were changed since"
        )
    for label, text in rows.items():
        typer.echo(f"{label:<9}{text}")
    for key, value in found["metadata"].items():
        typer.echo(f"  {quote(key)[1:-1]}: {quote(value, 200)[1:-1]}")


@app.command()
def verify(
    file: _File,
    model: _Model = "tiny",
    weight: Annotated[float, typer.Option(help="Strength for the probe of the output.")] = 1.0,
    no_text: _NoText = False,
    exclude: _Exclude = None,
    as_json: _Json = False,
) -> None:
    """Says what a LoRA matches in a model and how much it changes, block by block; exit
    code 1 where nothing changes.

    The model stays as it is.
    """
    from ea_lora.verify import verify_lora

    report = verify_lora(model, file, weight, parts=_parts(no_text), exclude=exclude or ())
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report)
    if not report.does_something:
        raise typer.Exit(1)


@app.command()
def merge(
    files: Annotated[
        list[str],
        typer.Argument(help="LoRA files, each with its weight behind a colon: style.safetensors:0.8."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new model folder.")],
    model: _Model = "tiny",
    no_text: _NoText = False,
    exclude: _Exclude = None,
) -> None:
    """Writes a new model folder with LoRAs worked into its weights (0.55 where no weight is given)."""
    from ea_lora.merge import merge_lora

    merged = merge_lora(
        model, [parse_spec(text) for text in files], output, parts=_parts(no_text), exclude=exclude or ()
    )
    for matching in merged.matchings:
        typer.echo(matching.summary())
    typer.echo(f"{merged.num_changed} tensors changed; wrote {merged.folder}")


def parse_spec(text: str) -> tuple[str, float]:
    """`FILE` or `FILE:WEIGHT` -> (file, weight); 0.55 without one. A file whose whole name is `text` wins.

    Raises UserError for a weight that is no number or out of range.
    """
    from ea_lora.network import DEFAULT_WEIGHT, check_weight

    name, colon, number = text.rpartition(":")
    if not colon or not name or "/" in number or "\\" in number or Path(text).exists():
        return text, DEFAULT_WEIGHT
    try:
        weight: Any = float(number)
    except ValueError:
        weight = number
    return name, check_weight(weight)


def _parts(no_text: bool) -> tuple[str, ...]:
    return ("denoiser",) if no_text else ("denoiser", "text")


def _show(report: LoraReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(report.summary, markup=False, soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("block", "layers", "change", "relative"):
        table.add_column(column, justify="left" if column == "block" else "right", no_wrap=True)
    table.add_column("", no_wrap=True)
    largest = max((block.norm for block in report.blocks), default=0.0) or 1.0
    for block in report.blocks:
        bar = "█" * round(_BAR_WIDTH * block.norm / largest)
        name = block.block if block.part == "denoiser" else f"{block.part}: {block.block}"
        table.add_row(name, str(block.num_layers), f"{block.norm:.4g}", f"{block.relative:.2%}", bar)
    console.print(table)
    for what, moved in report.probe.items():
        console.print(f"output on a {what} of noise moves by {moved:.2%} at weight {report.weight:g}")
    if not report.does_something:
        console.print("[red]this LoRA changes nothing: every change is 0[/red]")
