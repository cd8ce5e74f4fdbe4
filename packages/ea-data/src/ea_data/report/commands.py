"""`ea data report` and `ea data doctor`. Nothing heavy is imported until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ea_data.training.doctor import Diagnosis

app = typer.Typer()


@app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="The set that `ea data run` made.", metavar="SET")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to write the page; SET/report.html by default."),
    ] = None,
) -> None:
    """Write one HTML page that shows why every clip was kept or dropped, and summary.json."""
    from ea_data.report.write import write_report

    typer.echo(f"wrote {write_report(folder, output)}", err=True)


@app.command("doctor")
def doctor(
    path: Annotated[Path, typer.Argument(help="A set's folder, or its JSON or CSV list.", metavar="SET")],
    root: Annotated[Path | None, typer.Option(help="Folder that the list's paths are relative to.")] = None,
    size: Annotated[int, typer.Option(min=0, help="Side of the buckets' area; 0: each file's own size.")] = 0,
    num_frames: Annotated[int, typer.Option(min=1, help="Largest number of frames of a clip.")] = 9,
    stride: Annotated[int, typer.Option(min=1, help="Take every Nth frame of a clip.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 8,
    model: Annotated[
        str, typer.Option(help="Model whose tokenizer counts the captions: tiny or a folder.")
    ] = "tiny",
    quick: Annotated[bool, typer.Option("--quick", help="Decode no file.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Files read at a time.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a set before training: buckets, steps, long captions, unreadable and duplicate files.

    Exit code 1 if something would stop a run or lose samples.
    """
    from rich.progress import Progress

    from ea_data.training.doctor import diagnose
    from ea_runtime.machine.terminal import make_console
    from ea_runtime.training.data.dataset import SetOptions

    place = {"path": str(path), "root": str(root) if root else None}
    window = {"size": size, "num_frames": num_frames, "stride": stride}
    options = SetOptions.model_validate(place | window)
    with Progress(console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=None, visible=not quick)
        found = diagnose(
            options,
            batch_size=batch_size,
            model=model,
            with_files=not quick,
            workers=workers,
            on_file=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        typer.echo(found.to_json(), nl=False)
    else:
        _show(found, make_console(highlight=False))
    if not found.is_healthy:
        raise typer.Exit(1)


def _show(found: Diagnosis, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(
        f"{found.num_samples:,} samples an epoch ({found.num_pictures:,} pictures, {found.num_videos:,} videos); "
        f"{found.steps:,} steps at batch {found.batch_size}; longest caption {found.longest_caption} tokens "
        f"({escape(found.tokenizer)})"
    )
    table = Table("bucket", "frames", "size", "", box=None, pad_edge=False)
    for name in ("samples", "batches", "smallest"):
        table.add_column(name, justify="right")
    most = max(row.num_samples for row in found.buckets)
    for row in found.buckets:
        bar = "█" * max(1, round(24 * row.num_samples / most))
        bucket = (row.bucket.kind, str(row.bucket.num_frames), f"{row.bucket.width}x{row.bucket.height}")
        table.add_row(*bucket, bar, f"{row.num_samples:,}", f"{row.num_batches:,}", str(row.last))
    console.print(table)
    for finding in found.findings:
        mark = "[red]stops a run[/]" if finding.is_fatal else "[yellow]look at it[/]"
        console.print(f"{mark}: {finding.count:,} {escape(finding.name)}; {escape(finding.what_to_do)}")
        for name in finding.files:
            console.print(f"    {escape(name)}", soft_wrap=True)
    if not found.findings:
        console.print("[green]no faults found[/]")
