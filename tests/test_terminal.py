"""Text is printed unchanged: rich's emoji names in a path or prompt are not replaced."""

from __future__ import annotations

import ast
from pathlib import Path

from rich.table import Table

from ea_runtime.machine.terminal import make_console

ROOT = Path(__file__).parents[1]


def test_names_of_emoji_stay(capsys):
    table = Table()
    table.add_row("a:smile:/:cat:.mp4")
    console = make_console(width=80)
    console.print("wrote a:smile:/:cat:.mp4")
    console.print(table)
    assert capsys.readouterr().out.count("a:smile:/:cat:.mp4") == 2


def test_every_console_is_made_in_one_place():
    makers = set()
    for path in sorted(ROOT.glob("packages/*/src/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Console":
                makers.add(path.name)
    assert makers == {"terminal.py"}
