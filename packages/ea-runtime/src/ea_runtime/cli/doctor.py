"""`ea doctor`: checks of this machine and of its number formats."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer()

_MARKS = {"ok": ("ok", None), "note": ("--", "yellow"), "broken": ("!!", "red")}


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check this machine: torch, processor, number formats, devices, codecs, memory, disk, packages.

    Each number format is tried against float32 on convolutions, products, attention and norms. Exits with 1 if
    something is broken.
    """
    from ea_runtime.machine.health import checks

    found = []
    for check in checks():
        found.append(check)
        if not as_json:
            mark, style = _MARKS[check.state]
            typer.secho(f"{mark}  {check.name:<15} {check.text}", fg=style)
    if as_json:
        typer.echo(json.dumps([check._asdict() for check in found], indent=2))
    if any(check.state == "broken" for check in found):
        raise typer.Exit(1)
