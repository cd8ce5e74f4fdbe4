"""The commands of `ea data`. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import typer

from ea_data.draw.commands import app as draw_app
from ea_data.report.commands import app as report_app
from ea_data.run.caption_commands import app as captions_app
from ea_data.run.commands import app as run_app

app = typer.Typer(
    no_args_is_help=True, help="Prepare raw video for training: scan, split, score, filter, caption."
)
for part in (run_app, report_app, draw_app):
    app.add_typer(part)  # unnamed: their commands are at one level
app.add_typer(captions_app, name="captions")
