"""Reference pages of the commands, from what `ea COMMAND --help` shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from site_reference import escape


def commands() -> dict[str, Any]:
    """Every command of `ea` with the installed packages' own, by its words ("data run") -> its typer command."""
    from ea_runtime.cli.main import _build, _with_whole_summaries
    from ea_runtime.plugins.host import make_host

    host = make_host([], entry_points=None)
    found: dict[str, Any] = {}

    def add(words: str, command: Any) -> None:
        found[words] = command
        for name, inner in getattr(command, "commands", {}).items():
            add(f"{words} {name}", inner)

    for name in sorted(host.records("commands")):
        command = _build(host, name)
        add(name, _with_whole_summaries(command) if hasattr(command, "commands") else command)
    return found


def context(command: Any, words: str) -> Any:
    return command.make_context(f"ea {words}", [], resilient_parsing=True)


def page(words: str, command: Any) -> str:
    """The page of a top-level command, with its commands below it."""
    return "\n\n".join(_parts(words, command, 1)) + "\n"


def _parts(words: str, command: Any, level: int) -> Iterator[str]:
    yield f"{'#' * level} `ea {words}` {{ #{words.replace(' ', '-')} }}"
    inside = context(command, words)
    yield "```text\n" + " ".join(["ea", words, *command.collect_usage_pieces(inside)]) + "\n```"
    text = " ".join((command.help or "").split("\f")[0].split())
    if text:
        yield escape(text)
    for title, kind in (("Argument", "argument"), ("Option", "option")):
        rows = [_row(one, inside) for one in command.get_params(inside) if one.param_type_name == kind]
        rows = [row for row in rows if row]
        if rows:
            yield f"| {title} | Meaning |\n|---|---|\n" + "\n".join(rows)
    for name, inner in getattr(command, "commands", {}).items():
        yield from _parts(f"{words} {name}", inner, 2)


def _row(one: Any, inside: Any) -> str:
    """A parameter as a table row, as its line of `--help` has it; "" if that hides it."""
    record = one.get_help_record(inside)
    if record is None:
        return ""
    names, meaning = (" ".join(text.split()) for text in record)
    return f"| `{names}` | {escape(meaning).replace('|', chr(92) + '|')} |"


def summary(command: Any) -> str:
    """The first sentence of a command's help."""
    text = " ".join((command.help or "").split("\n\n")[0].split())
    return escape(text)
