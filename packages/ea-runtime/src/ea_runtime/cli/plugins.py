"""`ea plugins`: what is installed, from where, and in what state."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ea_runtime.plugins.host import Host

app = typer.Typer()

_COLUMNS = ("name", "kind", "package", "version", "state")
_STYLES = {"ok": None, "blocked": "yellow"}
#: narrower terminals show no summaries: they would squeeze the rest
_WIDE = 110
_SLOW = 1.0


@app.command()
def plugins(
    kind: Annotated[str | None, typer.Option(help="Show one kind only, for example samplers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the parts of all plugins: name, kind, package, version, state."""
    from ea_runtime.errors import UserError, nearest
    from ea_runtime.hookspecs import KINDS
    from ea_runtime.plugins.host import get_host

    if kind is not None and kind not in KINDS:
        raise UserError(f"`--kind` must be one of {', '.join(KINDS)}, got {kind!r}{nearest(kind, KINDS)}")
    host = get_host()
    rows = _rows(host, kind)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _show(rows, _notes(host, kind))


def _rows(host: Host, kind: str | None) -> list[dict[str, Any]]:
    """One row for each record, and one for each plugin that brings none."""
    clashes = host.clashes()
    rows = []
    for info in host.plugins.values():
        package = {"package": info.package, "version": info.version, "plugin": info.name}
        for entry in info.entries:
            if kind in (None, entry.kind):
                reason = clashes.get((entry.kind, entry.record.name), "")
                row = {"name": entry.record.name, "kind": entry.kind, **package}
                rows.append(row | _state("duplicate" if reason else "ok", reason, entry.record.summary))
        if info.state != "ok" or (not info.entries and kind is None):
            # a plugin that could not be read may bring any kind: it is shown whatever was asked for
            state, _, reason = info.state.partition(": ")
            rows.append({"name": info.name, "kind": "plugin", **package} | _state(state, reason, ""))
    return rows


def _state(state: str, reason: str, summary: str) -> dict[str, str]:
    return {"state": state, "reason": reason, "summary": summary}


def _notes(host: Host, kind: str | None) -> list[tuple[str, str]]:
    notes = [("duplicate", line) for line in host.clashes(kind).values()]
    for info in host.plugins.values():
        state, _, reason = info.state.partition(": ")
        if reason:
            notes.append((state, f"{info.name} (package {info.package}): {reason}"))
        if info.seconds > _SLOW:
            line = f"{info.name} (package {info.package}) took {info.seconds:.1f} s to load"
            notes.append(("slow", f"{line}; heavy imports belong inside `build`"))
    for name in host.unknown_blocks:
        notes.append(("unknown", f"EA_PLUGINS_BLOCK names {name!r}, and no installed plugin is called that"))
    return notes


def _show(rows: list[dict[str, Any]], notes: list[tuple[str, str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from ea_runtime.machine.terminal import make_console

    console = make_console(highlight=False)
    columns = (*_COLUMNS, "summary") if console.width >= _WIDE else _COLUMNS
    table = Table(
        box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0)
    )  # 20-character names fit in 80 columns
    for column in columns:
        table.add_column("what it is" if column == "summary" else column, overflow="fold")
    for row in rows:
        cells = (escape(str(row[column])) for column in columns)
        table.add_row(*cells, style=_STYLES.get(row["state"], "red"))
    console.print(table)
    for label, line in notes:
        console.print(f"[bold]{label}:[/bold] {escape(line)}", soft_wrap=True)
