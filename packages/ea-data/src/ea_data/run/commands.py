"""`ea data run`, and its stages alone. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ea_data.run.pipeline import Outcome

app = typer.Typer(no_args_is_help=True)

Raw = Annotated[Path, typer.Argument(help="Folder of raw video; folders in it are looked into.")]
Out = Annotated[
    Path, typer.Option("-o", "--output", help="Folder of the set; an earlier run in it is gone on with.")
]
Set_ = Annotated[Path, typer.Argument(help="Folder of a set that `ea data split` or `run` began.")]
ProfileName = Annotated[str, typer.Option(help="offline, paper, reference-v2 or a TOML file.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Change an option: filter.motion.min=0.01. Repeatable.")
]
Filters = Annotated[list[str] | None, typer.Option("--filter", help="One more filter, by name. Repeatable.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds after which a clip that hangs is given up.")]
Memory = Annotated[int, typer.Option(min=0, help="Most MB of a process; 0: no limit.")]
ScoreAll = Annotated[bool, typer.Option("--score-all", help="Compute every score, also of dropped clips.")]
Pictures = Annotated[
    bool, typer.Option("--pictures", help="Take pictures too, as clips of one frame; not judged by motion.")
]
EngineName = Annotated[str, typer.Option(help="Who does the work: local or ray.")]
Retry = Annotated[bool, typer.Option("--retry-errors", help="Try again what is remembered as an error.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no report.html and summary.json.")]


@app.command("run")
def run(
    raw: Raw,
    out: Out,
    profile: ProfileName = "offline",
    settings: Settings = None,
    filters: Filters = None,
    pictures: Pictures = False,
    workers: Workers = 0,
    timeout: Timeout = 120.0,
    memory: Memory = 4096,
    score_all: ScoreAll = False,
    engine: EngineName = "local",
    retry_errors: Retry = False,
    no_report: NoReport = False,
) -> None:
    """Turn a folder of raw video into a captioned training set. Stopped or killed, the same command goes on."""
    tables = _profile(profile, settings, filters, pictures)
    _go(
        "run", raw, out, profile, tables, workers, timeout, memory, score_all, engine, retry_errors, no_report
    )


@app.command("split")
def split(
    raw: Raw,
    out: Out,
    profile: ProfileName = "offline",
    settings: Settings = None,
    filters: Filters = None,
    pictures: Pictures = False,
    workers: Workers = 0,
    timeout: Timeout = 120.0,
    memory: Memory = 4096,
    engine: EngineName = "local",
    retry_errors: Retry = False,
) -> None:
    """Begin a set: look at the raw files and find their clips, no more."""
    tables = _profile(profile, settings, filters, pictures)
    _go("split", raw, out, profile, tables, workers, timeout, memory, False, engine, retry_errors, True)


@app.command("score")
def score(
    folder: Set_,
    settings: Settings = None,
    filters: Filters = None,
    workers: Workers = 0,
    timeout: Timeout = 120.0,
    memory: Memory = 4096,
    score_all: ScoreAll = False,
    engine: EngineName = "local",
    retry_errors: Retry = False,
    no_report: NoReport = False,
) -> None:
    """Compute the scores that a set's clips lack; each is decoded once."""
    _stage(
        "score",
        folder,
        settings,
        filters,
        workers,
        timeout,
        memory,
        score_all,
        engine,
        retry_errors,
        no_report,
    )


@app.command("filter")
def filter_(
    folder: Set_,
    settings: Settings = None,
    filters: Filters = None,
    no_report: NoReport = False,
) -> None:
    """Judge a set's clips anew, after a change of limits; decodes nothing."""
    _stage("filter", folder, settings, filters, 1, 120.0, 0, None, "none", False, no_report)


@app.command("caption")
def caption(
    folder: Set_,
    settings: Settings = None,
    workers: Workers = 0,
    timeout: Timeout = 120.0,
    memory: Memory = 4096,
    engine: EngineName = "local",
    retry_errors: Retry = False,
    no_report: NoReport = False,
) -> None:
    """Describe the kept clips and write their files."""
    _stage("caption", folder, settings, None, workers, timeout, memory, None, engine, retry_errors, no_report)


def _profile(
    name: str, settings: list[str] | None, filters: list[str] | None, pictures: bool
) -> dict[str, Any]:
    from ea_data.profile import load
    from ea_data.run.config_file import without_own

    settings = [*(settings or ()), *(["source.pictures=true"] if pictures else ())]
    return load(name, settings, filters or (), tables=without_own(load(name)))


def _stage(
    command: str, folder: Path, settings: list[str] | None, filters: list[str] | None, *rest: Any
) -> None:
    from ea_data.profile import load
    from ea_data.run.config_file import read_config

    run, tables = read_config(folder)
    tables = load("", settings or (), filters or (), tables=tables)
    workers, timeout, memory, score_all, engine, retry_errors, no_report = rest
    if score_all is None:
        score_all = bool(run.get("score_all"))
    name = str(run.get("profile", "offline"))
    raw = Path(run["raw"])
    _go(
        command,
        raw,
        folder,
        name,
        tables,
        workers,
        timeout,
        memory,
        score_all,
        engine,
        retry_errors,
        no_report,
    )


def _go(
    command: str,
    raw: Path,
    out: Path,
    name: str,
    tables: dict[str, Any],
    workers: int,
    timeout: float,
    memory: int,
    score_all: bool,
    engine: str,
    retry_errors: bool,
    no_report: bool,
) -> None:
    from rich.console import Console

    from ea_data.media.source import check_root
    from ea_data.profile import Parts, parse
    from ea_data.report.write import write_report
    from ea_data.run.config_file import write_config
    from ea_data.run.engine import Limits
    from ea_data.run.engines import make_engine
    from ea_data.run.pipeline import Pipeline
    from ea_data.run.progress import RunProgress
    from ea_data.run.worker import Worker
    from ea_runtime.plugins.host import get_host

    began = time.monotonic()
    root = check_root(raw)
    _check_out(root, out)
    profile = parse(tables, name)
    parts = Parts(profile)
    if command != "filter":
        parts.check(name)
    write_config(out, profile, parts, {"raw": str(root), "profile": name, "score_all": score_all})
    console = Console(stderr=True)
    progress = RunProgress(console)
    plugins = [str(path) for path in get_host().files]
    here = 0 if engine == "ray" else os.cpu_count() or 1  # Ray knows how many CPUs its cluster has
    limits = Limits(workers or here, timeout, memory)
    worker = Worker(tables, str(root), plugins, score_all)
    does = None if command == "filter" else make_engine(engine, worker, limits)
    pipeline = Pipeline(
        root,
        out,
        tables,
        does,
        command=command,
        score_all=score_all,
        retry_errors=retry_errors,
        progress=progress,
    )
    try:
        outcome = pipeline.run()
        if not no_report and command != "split":
            write_report(out)
    except KeyboardInterrupt:
        console.print(
            f"stopped; what is done is kept in {out}: the same command goes on from there",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    finally:
        if does is not None:
            does.close()
    _tell(console, outcome, progress, out, time.monotonic() - began)


def _check_out(root: Path, out: Path) -> None:
    from ea_runtime.errors import UserError

    if out.exists() and not out.is_dir():
        raise UserError(f"`--output` must be a folder, but {str(out)!r} is a file")
    place = out.resolve()
    if place == root or place.is_relative_to(root):
        raise UserError(f"`--output` {str(out)!r} lies in the folder of raw video; put the set elsewhere")


def _tell(console: Console, outcome: Outcome, progress: Any, out: Path, seconds: float) -> None:
    from ea_data.media.source import tell_skipped

    statuses = outcome.statuses
    words = [f"{outcome.found} files, {outcome.clips} clips, {statuses['ok']} kept"]
    if outcome.dropped:
        words.append(
            "dropped: " + ", ".join(f"{name} {count}" for name, count in sorted(outcome.dropped.items()))
        )
    for status, what in (("error", "errors"), ("transient", "to be tried again")):
        if statuses[status]:
            words.append(f"{statuses[status]} {what}")
    if outcome.skipped:
        words.append(f"passed over: {tell_skipped(outcome.skipped)}")
    if outcome.unwritten:
        words.append(f"{outcome.unwritten} kept clips have no file yet: `ea data caption {out}` writes them")
    console.print("; ".join(words), highlight=False, soft_wrap=True)
    busy = [phase for phase in progress.phases if phase.fresh]
    rates = ", ".join(f"{phase.name} {phase.fresh / phase.seconds:.3g} {phase.unit}/s" for phase in busy)
    told = f"{out}: {seconds:.1f} s" + (f" ({rates})" if rates else "")
    console.print(told, highlight=False, soft_wrap=True)
