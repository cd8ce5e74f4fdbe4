"""The commands of `ea data`. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import typer

from ea_data.draw.commands import app as draw_app

app = typer.Typer(no_args_is_help=True, help="Make and prepare training data.")
app.add_typer(draw_app)  # unnamed: its commands stand beside ours
