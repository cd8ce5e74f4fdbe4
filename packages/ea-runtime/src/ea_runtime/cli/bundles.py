"""`ea bundles`: what was exported here, whether a bundle would load, and taking one from elsewhere."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(help="List, check and accept exported bundles.", no_args_is_help=True)

_Folder = Annotated[str, typer.Argument(help="A folder that `ea export` wrote.")]


@app.command("list")
def list_bundles(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the bundles that you exported or accepted."""
    from ea_runtime.export import build_record

    entries = build_record.entries()
    if as_json:
        typer.echo(json.dumps(entries, indent=2))
        return
    for one in entries:
        words = [
            str(one.get(key, "")) for key in ("date", "how", "target", "model", "size", "dtype", "bundle")
        ]
        typer.echo("  ".join(word for word in words if word))
    if not entries:
        typer.echo(f"nothing is recorded in {build_record.place()}; `ea export` records what it builds")


@app.command()
def check(folder: _Folder) -> None:
    """Check a bundle: its contents, and if it loads. Exit code 2 and one line if not."""
    from ea_runtime.export.bundle import open_bundle

    bundle = open_bundle(folder)
    typer.echo(
        f"{bundle.target} bundle of {bundle.model}: {bundle.size.words()}, {bundle.dtype}, opset {bundle.opset}"
    )
    for graph in bundle.graphs:
        inputs = ", ".join(f"{one.name} {list(one.shape)} {one.dtype}" for one in graph.inputs)
        typer.echo(f"  {graph.name}: {inputs}")


@app.command()
def accept(
    folder: _Folder,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Add a bundle built elsewhere to your build record, after all other checks.

    An engine is code that runs as you: accept only what you or people you trust have built.
    """
    from ea_runtime.export import build_record
    from ea_runtime.export.bundle import inspect_bundle, record

    bundle = inspect_bundle(folder)
    typer.echo(f"{bundle.target} bundle of {bundle.model}, sha256 of its manifest {bundle.digest}")
    if not yes and not typer.confirm(
        "It runs as you from then on. Was it built by you or by someone you trust?"
    ):
        raise typer.Exit(1)
    record(bundle, bundle.folder, bundle.digest, how="accepted")
    typer.echo(f"recorded in {build_record.place()}")
