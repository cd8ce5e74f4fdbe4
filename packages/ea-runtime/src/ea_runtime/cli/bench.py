"""`ea bench report`: what the benchmarks wrote becomes a table and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Show benchmark results (written by `uv run pytest benchmarks` in a clone)."""


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="Folder of the results' JSON files.")] = Path(
        "benchmarks/results"
    ),
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Page in which to replace the part between the bench markers. Default: print.",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Where to write the plot (.svg).")] = None,
) -> None:
    """Show the ratios to plain eager PyTorch as a table and a plot, with the machine that they were measured on."""
    from ea_runtime.cli.bench_report import draw, put_into, read_results, table

    found = read_results(results)
    text = table(found)
    if plot is not None:
        plot.write_text(draw(found), encoding="utf-8")
        typer.echo(plot)
    if output is None:
        typer.echo(text)
    else:
        put_into(output, text)
        typer.echo(output)
