"""`ea data captions export`, `import` and `reset`. Nothing heavy is imported until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ea_data.run.edits import Imported

app = typer.Typer(no_args_is_help=True, help="Edit the captions of a finished set in one CSV.")

Set = Annotated[Path, typer.Argument(metavar="SET", help="The set that `ea data run` made.")]


@app.command("export")
def export(
    folder: Set,
    output: Annotated[Path, typer.Option("-o", "--output", help="The CSV to write.")] = Path("captions.csv"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write the captions of a set's kept clips as CSV (UTF-8), for a spreadsheet or an editor."""
    from ea_data.run.edits import export_captions

    count = export_captions(folder, output, overwrite=overwrite)
    typer.echo(
        f"wrote {count} captions to {output}; edit its column text, then: "
        f"ea data captions import {folder} {output}",
        err=True,
    )


@app.command("import")
def import_(
    folder: Set,
    captions: Annotated[Path, typer.Argument(metavar="CAPTIONS", help="The edited CSV.")],
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Pass over rows about clips that the set does not have.")
    ] = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Write neither report.html nor summary.json.")
    ] = False,
) -> None:
    """Give a set's clips the captions of an edited CSV; later runs keep them.

    Columns: clip_id and text; a row whose source is not the clip's is refused. Clips that the CSV lacks keep their
    captions, and an empty text empties a caption.
    """
    from ea_data.report.write import write_report
    from ea_data.run.caption_list import read
    from ea_data.run.edits import import_captions

    found = import_captions(folder, read(captions), skip_unknown=skip_unknown)
    if not no_report:
        write_report(folder)
    typer.echo(_tell(found, folder), err=True)


@app.command("reset")
def reset(folder: Set) -> None:
    """Forget all imported captions, so that those of the captioner come back."""
    from ea_data.run.edits import reset_captions

    count = reset_captions(folder)
    then = f"; `ea data caption {folder}` writes the captioner's" if count else ""
    typer.echo(f"{count} imported captions forgotten{then}", err=True)


def _tell(found: Imported, folder: Path) -> str:
    words = [f"captions changed: {found.changed}"]
    if found.dropped:
        words.append(f"of clips that are dropped now: {found.dropped} (kept in case they are not, later)")
    if found.to_write:
        words.append(
            f"of clips without a file yet: {found.to_write} (`ea data caption {folder}` writes them)"
        )
    if found.unlisted:
        words.append(f"not in the list, unchanged: {found.unlisted}")
    if found.skipped:
        words.append(f"rows about no clip of the set, skipped: {found.skipped}")
    if found.empty:
        words.append(f"empty captions: {found.empty} (they train the empty prompt)")
    return "; ".join(words)
