"""`ea data draw`, `check-drawn` and `prompts`. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ea_data.draw.raw_write import app as raw_app

if TYPE_CHECKING:
    from ea_data.draw.check import Report

app = typer.Typer(no_args_is_help=True)
app.add_typer(raw_app)


@app.command("draw")
def draw(
    out: Annotated[Path, typer.Argument(help="Folder to make; it must be absent or empty.")],
    num_clips: Annotated[
        int | None,
        typer.Option(help="How many clips; default 100, or 0 for a style other than filled."),
    ] = None,
    num_pictures: Annotated[
        int | None,
        typer.Option(help="How many pictures; default 0, or 20 for a style other than filled."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal sets.")] = 0,
    split: Annotated[str, typer.Option(help="Combinations: train, heldout or all.")] = "train",
    height: Annotated[int, typer.Option(help="Pixels, even.")] = 64,
    width: Annotated[int, typer.Option(help="Pixels, even.")] = 64,
    num_frames: Annotated[int, typer.Option(help="Frames per clip.")] = 18,
    fps: Annotated[int, typer.Option(help="Frames per second.")] = 12,
    style: Annotated[
        str, typer.Option(help="filled, or outline (its captions end in a trigger word).")
    ] = "filled",
    num_continued: Annotated[
        int, typer.Option(help="Clips that continue given first frames; for train.task = inpaint.")
    ] = 0,
    num_bridged: Annotated[
        int, typer.Option(help="Clips of 27 frames between given first and last frames; for the same.")
    ] = 0,
    first_last: Annotated[
        bool, typer.Option("--first-last", help="Also write each clip's first and last frame as pictures.")
    ] = False,
) -> None:
    """Draw a data set: coloured shapes that move, with captions and truth."""
    from rich.progress import Progress

    from ea_data.draw.write import DrawConfig, write_set
    from ea_runtime.machine.terminal import make_console

    # a new look is taught to a model that can draw already, with about twenty pictures
    is_look = style != "filled" and num_clips is None
    if num_pictures is None:
        num_pictures = 20 if is_look else 0
    if num_clips is None:
        num_clips = 0 if is_look else 100
    config = DrawConfig(
        num_clips,
        num_pictures,
        seed,
        split,
        height,
        width,
        num_frames,
        fps,
        style,
        num_continued,
        num_bridged,
        first_last,
    )
    with Progress(console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task("drawing", total=sum(config.counts.values()))
        write_set(out, config, on_item=lambda number: progress.update(task, completed=number))
    given = (
        f", {num_continued} continued and {num_bridged} bridged ones" if num_continued or num_bridged else ""
    )
    typer.echo(f"drew {num_clips} clips{given} and {num_pictures} pictures into {out}", err=True)


@app.command("check-drawn")
def check_drawn(
    paths: Annotated[
        list[Path], typer.Argument(help="Drawn sets, folders of clips with sidecars, or clips.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write adherence.json.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Where to write a contact sheet (.png).")] = None,
    sheet_clips: Annotated[int, typer.Option(min=1, help="Clips on the contact sheet.")] = 16,
) -> None:
    """Measure from the pixels alone whether clips show what their prompts ask for, and the pictures they start from."""
    from rich.progress import track

    from ea_data.draw.check import check_clip, summarise
    from ea_data.draw.files import find_sources, read_frames, read_given
    from ea_data.records.store import write_text
    from ea_runtime.machine.terminal import make_console

    if output is not None and output.is_dir():
        output = output / "adherence.json"
    sources, skipped = find_sources(paths)
    items, shown = [], []
    for source in track(sources, "checking", console=make_console(stderr=True), transient=True):
        frames, given = read_frames(source.path), read_given(source)
        items.append(check_clip(source.prompt, frames, str(source.path), source.truth, given))
        if sheet is not None and len(shown) < sheet_clips:
            shown.append((items[-1], frames))
    report = summarise(items)
    make_console().print(_table(report))
    for line in _known_lines(report):
        typer.echo(line)
    if skipped:
        typer.echo(f"skipped {len(skipped)} files without a prompt, first {skipped[0]}", err=True)
    if sheet is not None:
        from ea_data.draw.sheet import save_sheet

        save_sheet(sheet, shown)
        typer.echo(f"wrote {sheet}", err=True)
    if output is not None:
        write_text(output, json.dumps(report.to_dict(), indent=1) + "\n")
        typer.echo(f"wrote {output}", err=True)


@app.command("prompts")
def prompts(
    num_prompts: Annotated[int, typer.Argument(help="How many prompts.")] = 100,
    split: Annotated[str, typer.Option(help="Combinations: heldout, train or all.")] = "heldout",
    seed: Annotated[int, typer.Option(help="Equal seeds give equal prompts.")] = 0,
) -> None:
    """Print prompts, one per line, that name every attribute; held-out ones by default."""
    from ea_data.draw.caption import sample_prompts

    for line in sample_prompts(num_prompts, seed, split):
        typer.echo(line)


def _table(report: Report):
    from rich.table import Table

    fill = report.fill
    inside = "" if fill is None else f", shapes filled inside to {fill:.0%} on average"
    table = Table(title=f"{len(report.items)} clips{inside}", title_justify="left")
    table.add_column("attribute")
    for column in ("rate", "right", "asked"):
        table.add_column(column, justify="right")
    for name, (right, asked) in report.counts.items():
        rate = f"{right / asked:.1%}" if asked else "-"
        table.add_row(name, rate, str(right), str(asked), end_section=name == "background")
    return table


def _known_lines(report: Report) -> list[str]:
    known = report.known
    if known is None:
        return []
    lines = [f"{known['num_clips']} of them were made from pictures:"]
    for name, what in (("first_psnr", "first frame"), ("last_psnr", "last frame")):
        if name in known:
            found = known[name]
            lines.append(
                f"  {what} to the given one: median {found['median']:.1f} dB, least {found['least']:.1f} dB"
            )
    lines += [f"  {name}: {right} of {asked} right" for name, (right, asked) in known["right"].items()]
    return lines
