"""`ea plugins`: what is installed, from where, and in what state."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def plugins(
    kind: Annotated[str | None, typer.Option(help="Show one kind only, for example samplers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Lists the parts that plugins bring: name, kind, package, version, state."""
    from ea_runtime.errors import UserError, nearest
    from ea_runtime.hookspecs import KINDS
    from ea_runtime.plugins import get_host

    if kind is not None and kind not in KINDS:
        raise UserError(f"`--kind` must be one of {', '.join(KINDS)}, got {kind!r}{nearest(kind, KINDS)}")
    host = get_host()
    rows = []
    for info in host.plugins.values():
        shown = [e for e in info.entries if kind in (None, e.kind)]
        for entry in shown:
            rows.append((entry.record.name, entry.kind, info.package, info.version, "ok", entry.record.summary))
        if info.state != "ok" or (not info.entries and kind is None):
            rows.append((info.name, "plugin", info.package, info.version, info.state, ""))
    if as_json:
        keys = ("name", "kind", "package", "version", "state", "summary")
        typer.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("name", "kind", "package", "version", "state", "what it is"):
        table.add_column(column, overflow="fold")
    for row in rows:
        style = None if row[4] == "ok" else "yellow" if row[4] == "blocked" else "red"
        table.add_row(*row, style=style)
    console = Console()
    console.print(table)
    for line in host.clashes():
        console.print(f"[red]clash:[/red] {line}", highlight=False, soft_wrap=True)
