"""`ea data run` and its single stages. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from ea_data.run.pipeline import Outcome

app = typer.Typer(no_args_is_help=True)


@dataclass(kw_only=True)
class RunOptions:
    """Every argument and option of the commands, once; a command without one of the options has its default."""

    raw: Annotated[Path, typer.Argument(help="Folder of raw video, searched with its subfolders.")] = Path()
    out: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the set; an earlier run in it is resumed.")
    ] = Path()
    folder: Annotated[Path, typer.Argument(help="Folder of a set that `ea data split` or `run` began.")] = (
        Path()
    )
    profile: Annotated[
        str,
        typer.Option(
            help="Stages and limits: offline (needs no weights), paper, reference-v2 or a TOML file."
        ),
    ] = "offline"
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change an option: filter.motion.min=0.01. Repeatable.")
    ] = None
    filters: Annotated[
        list[str] | None, typer.Option("--filter", help="One more filter, by name. Repeatable.")
    ] = None
    pictures: Annotated[
        bool,
        typer.Option("--pictures", help="Take pictures too, as clips of one frame; not judged by motion."),
    ] = False
    fps: Annotated[
        str, typer.Option(help="Rate of the written clips, such as 24; as in the source by default.")
    ] = ""
    size: Annotated[
        str,
        typer.Option(help="Size of the written clips: 512 (short side) or 512x288 (scaled, then cropped)."),
    ] = ""
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a clip that hangs is given up.")] = (
        120.0
    )
    memory: Annotated[int, typer.Option(min=0, help="Memory limit per process in MB; 0: no limit.")] = 4096
    score_all: Annotated[
        bool, typer.Option("--score-all", help="Compute every score, even of dropped clips.")
    ] = False
    engine: Annotated[
        str, typer.Option(help="Where the work is done: local, on this machine, or ray, on a cluster.")
    ] = "local"
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Try again what ended in an error before.")
    ] = False
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Write neither report.html nor summary.json.")
    ] = False


def _add(stage: str, help: str, options: str) -> None:
    """Registers a command that takes `options`: names of RunOptions' fields, in that order."""
    hints = get_type_hints(RunOptions, include_extras=True)

    def command(**given: Any) -> None:
        if "folder" in given:
            _continue(stage, given)
        else:
            _begin(stage, RunOptions(**given))

    parameters = []
    for name in options.split():
        default = Parameter.empty if name in ("raw", "out", "folder") else getattr(RunOptions, name)
        kind = Parameter.KEYWORD_ONLY
        parameters.append(Parameter(name, kind, default=default, annotation=hints[name]))
    command.__dict__["__signature__"] = Signature(parameters)
    app.command(stage, help=help)(command)


_add(
    "run",
    "Turn a folder of raw video into a captioned training set. After a stop or a kill, the same command resumes.",
    "raw out profile settings filters pictures fps size workers timeout memory score_all engine retry_errors no_report",
)
_add(
    "split",
    "Begin a set: look at the raw files and find their clips, no more.",
    "raw out profile settings filters pictures workers timeout memory engine retry_errors",
)
_add(
    "score",
    "Compute the scores that a set's clips lack; each clip is decoded once.",
    "folder settings filters workers timeout memory score_all engine retry_errors no_report",
)
_add(
    "filter",
    "Judge a set's clips again after a change of limits; decodes nothing.",
    "folder settings filters no_report",
)
_add(
    "caption",
    "Describe the kept clips and write their files; caption files that changed are read again.",
    "folder settings workers timeout memory engine retry_errors no_report",
)


def _begin(stage: str, options: RunOptions) -> None:
    from ea_data.profile import load, read_profile
    from ea_data.run.config_file import splitter_of, without_own

    settings = [*(options.settings or ()), *(["source.pictures=true"] if options.pictures else ())]
    settings += [f"clips.{name}={value}" for name in ("fps", "size") if (value := getattr(options, name))]
    tables = without_own(read_profile(options.profile))
    before = splitter_of(options.out)
    tables = load(options.profile, settings, options.filters or (), tables=tables, split_before=before)
    _go(stage, options, tables)


def _continue(stage: str, given: dict[str, Any]) -> None:
    from ea_data.profile import load
    from ea_data.run.config_file import read_config

    run, tables = read_config(given["folder"])
    begun = {
        "raw": Path(run["raw"]),
        "out": given["folder"],
        "profile": str(run.get("profile", "offline")),
        "score_all": bool(run.get("score_all")),
    }
    options = RunOptions(**begun | given)
    _go(stage, options, load("", options.settings or (), options.filters or (), tables=tables))


def _go(stage: str, options: RunOptions, tables: dict[str, Any]) -> None:
    from ea_data.media.source import check_root
    from ea_data.profile import Components, parse
    from ea_data.records.full_disk import told_if_full
    from ea_data.report.write import write_report
    from ea_data.run.config_file import write_config
    from ea_data.run.engine import Limits
    from ea_data.run.engines import make_engine
    from ea_data.run.pipeline import Pipeline
    from ea_data.run.progress import RunProgress
    from ea_data.run.worker import Worker
    from ea_runtime.machine.terminal import make_console
    from ea_runtime.plugins.host import get_host

    began = time.monotonic()
    # verdicts alone need no raw file
    root = options.raw if stage == "filter" and not options.raw.is_dir() else check_root(options.raw)
    out, name, score_all = options.out, options.profile, options.score_all
    _check_out(root, out)
    profile = parse(tables, name)
    parts = Components(profile)
    if stage != "filter":
        parts.check(name)
    write_config(out, profile, parts, {"raw": str(root), "profile": name, "score_all": score_all})
    progress = RunProgress(make_console(stderr=True))
    plugins = [str(path) for path in get_host().files]
    cores = 0 if options.engine == "ray" else os.cpu_count() or 1  # Ray knows how many CPUs its cluster has
    limits = Limits(options.workers or cores, options.timeout, options.memory)
    worker = Worker(tables, str(root), plugins, score_all)
    engine = None if stage == "filter" else make_engine(options.engine, worker, limits)
    pipeline = Pipeline(
        root,
        out,
        tables,
        engine,
        command=stage,
        score_all=score_all,
        retry_errors=options.retry_errors,
        progress=progress,
    )
    try:
        outcome = pipeline.run()
        if not options.no_report and stage != "split":
            with told_if_full(out):
                write_report(out)
    except KeyboardInterrupt:
        message = f"stopped; finished work is kept in {out}: the same command resumes from there"
        typer.echo(message, err=True)
        raise typer.Exit(130) from None
    finally:
        if engine is not None:
            engine.close()
    has_report = not options.no_report and stage != "split"
    _report(outcome, progress, out, time.monotonic() - began, has_report)


def _check_out(root: Path, out: Path) -> None:
    from ea_runtime.errors import UserError

    if out.exists() and not out.is_dir():
        raise UserError(f"`--output` must be a folder, but {str(out)!r} is a file")
    if out.resolve().is_relative_to(root):
        raise UserError(f"`--output` {str(out)!r} is in the folder of raw video; put the set elsewhere")


def _report(outcome: Outcome, progress: Any, out: Path, seconds: float, has_report: bool) -> None:
    from ea_data.media.source import tell_skipped
    from ea_runtime.text.lost_words import tell_lost_words

    statuses = outcome.statuses
    clips = f"{outcome.clips} clip{'s' * (outcome.clips != 1)}"
    words = [f"{outcome.found} file{'s' * (outcome.found != 1)}, {clips}, {statuses['ok']} kept"]
    if outcome.dropped:
        names = {"source": "copies of another file", "split": "files without a scene long enough"}
        counts = ", ".join(
            f"{names.get(name, name)} {count}" for name, count in sorted(outcome.dropped.items())
        )
        words.append(f"dropped: {counts}")
    if statuses["error"]:
        words.append(f"{statuses['error']} error{'s' * (statuses['error'] != 1)}")
    if statuses["transient"]:
        words.append(f"{statuses['transient']} to retry by the next run")
    if outcome.skipped:
        words.append(f"skipped: {tell_skipped(outcome.skipped)}")
    if outcome.unwritten:
        words.append(f"{outcome.unwritten} kept clips have no file yet: `ea data caption {out}` writes them")
    if outcome.empty:
        words.append(f"empty captions: {outcome.empty} (they train the empty prompt)")
    typer.echo("; ".join(words), err=True)
    lost = tell_lost_words(outcome.captions, "captions looked at")
    if lost:
        typer.echo(lost, err=True)
    fresh = [phase for phase in progress.phases if phase.fresh]
    rates = ", ".join(f"{one.name} {one.fresh / one.seconds:.3g} {one.unit}/s" for one in fresh)
    shown = "files.csv lists what became of each file"
    if has_report:
        shown = f"look at {out / 'report.html'}; {shown}"
    typer.echo(f"{out}: {seconds:.1f} s" + (f" ({rates})" if rates else "") + f"; {shown}", err=True)
