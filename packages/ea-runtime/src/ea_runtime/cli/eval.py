"""`ea eval`: judges a folder of videos, offline and repeatably, and compares it with another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

app = typer.Typer(add_completion=False)

#: files of a report folder
JSON, PAGE = "eval.json", "eval.html"


@app.command("eval")
def evaluate(
    folder: Annotated[
        Path, Argument(help="Folder of videos, with the sidecars of ea generate if there are.")
    ],
    against: Annotated[
        Path | None, Option(help="Folder to compare with; videos of one name are compared in pairs.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        Option(
            help="Metric to measure; repeatable. Default: all that need no weights (ea plugins --kind metrics)."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None, Option("--set", help="Option of a metric, such as seam.chunk=8; repeatable.")
    ] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help=f"Folder for {JSON} and {PAGE}; made if missing.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of the table.")] = False,
    jobs: Annotated[
        int | None,
        Option(min=1, max=64, help="Processes; the result is the same for any. Default: by cores."),
    ] = None,
) -> None:
    """Judge a folder of videos, and compare it with another: a table, JSON and one HTML page.

    Exit code 0: done, 1: done, but a video could not be read or a metric failed, 2: the request is wrong.
    """
    from ea_runtime.evaluation.chosen import choose
    from ea_runtime.evaluation.report import evaluate as judge_folder
    from ea_runtime.evaluation.report import tasks_of
    from ea_runtime.evaluation.videos import find_videos

    ours = find_videos(folder)
    theirs = None if against is None else find_videos(against, "against")
    chosen = choose(metric or (), setting or (), is_compared=theirs is not None)
    _check_pairs(ours, theirs, metric or (), chosen)
    if output is not None:
        _check_output(output)
    with _progress(len(tasks_of(ours, theirs))) as on_done:
        report = judge_folder(ours, theirs, chosen, jobs=jobs, on_done=on_done)
    if output is not None:
        _write(output, report)
    _show(report, as_json)
    if not report.is_whole:
        raise typer.Exit(1)


def _check_pairs(ours: Any, theirs: Any, names: Any, chosen: Any) -> None:
    from ea_runtime.errors import UserError

    if theirs is None or {one.key for one in ours.videos} & {one.key for one in theirs.videos}:
        return
    of_pairs = [one.name for one in chosen if one.name in names and one.record.of == "pair"]
    if of_pairs:
        raise UserError(
            f"the metric {of_pairs[0]!r} needs videos of the same names, but {ours.videos[0].name!r} and the others of "
            f"{ours.name!r} have none in {theirs.name!r}; name the files alike"
        )


def _check_output(output: Path) -> None:
    from ea_runtime.errors import UserError

    if output.exists() and not output.is_dir():
        raise UserError(f"`output` must be a folder, for {JSON} and {PAGE}, got the file {str(output)!r}")


def _progress(total: int) -> Any:
    """A bar on stderr; yields what is called after each video."""
    from contextlib import contextmanager

    from rich.progress import Progress

    from ea_runtime.machine.terminal import make_console

    @contextmanager
    def shown() -> Any:
        with Progress(console=make_console(stderr=True), transient=True) as bar:
            task = bar.add_task("judging", total=total)
            yield lambda: bar.advance(task)

    return shown()


def _write(output: Path, report: Any) -> None:
    from ea_runtime.errors import writing
    from ea_runtime.evaluation.page import page
    from ea_runtime.files.atomic import write_atomic

    with writing(output, "choose another folder with -o"):
        output.mkdir(parents=True, exist_ok=True)
        write_atomic(output / JSON, report.to_json())
        write_atomic(output / PAGE, page(report))


def _show(report: Any, as_json: bool) -> None:
    from ea_runtime.evaluation.table import table
    from ea_runtime.files.safe import plain
    from ea_runtime.machine.terminal import make_console

    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        make_console(highlight=False).print(table(report.data))
    for line in report.data["notes"]:
        typer.echo(f"note: {plain(line, 400)}", err=True)
    for row in [*report.data["videos"], *report.data["against_videos"]]:
        if row["reason"]:
            typer.echo(f"not judged: {plain(row['name'], 250)}: {plain(row['reason'], 400)}", err=True)
