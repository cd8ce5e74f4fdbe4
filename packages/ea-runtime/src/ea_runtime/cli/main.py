"""The `ea` program: global options, lazily built commands, and errors in one line.

A command's module is imported when that command runs, never for `ea --help`; torch is imported by the work
itself. Commands come from the `ea_commands` hook.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from ea_runtime.errors import UserError
from ea_runtime.plugins.discovery import one_line
from ea_runtime.plugins.host import Host, get_host, make_host, set_host

#: Base class of what typer raises for wrong words on the command line (typer carries its own click).
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]


class _Stopped(Exception):
    """Ctrl-C, in a shape that typer does not turn into a mere exit code."""


class LazyGroup(TyperGroup):
    """A group whose commands are built when they are run, and shown by their summary until then."""

    def list_commands(self, ctx: Any) -> list[str]:
        host = get_host()
        return sorted({*host.records("commands"), *(name for _, name in host.clashes("commands"))})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        host = get_host()
        if ("commands", cmd_name) in host.clashes("commands"):
            summary = "Brought by two plugins, so by none: see `ea plugins`."
        elif cmd_name in host.records("commands"):
            summary = host.records("commands")[cmd_name].record.summary
        else:
            return None
        return TyperCommand(name=cmd_name, short_help=summary, callback=lambda: None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, rest = args[0], args[1:]
        if name.startswith("-"):
            raise UserError(f"no such option {name!r}; `ea --help` lists the options and commands")
        command = _build(get_host(), name)
        command.name = name
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Stopped from error


def _build(host: Host, name: str) -> Any:
    """The command of a record. Raises UserError that names the package if the plugin's part is broken."""
    record = host.get("commands", name)
    entry = host.records("commands")[name]
    where = f"command {name!r} of plugin {entry.plugin} (package {entry.package} {entry.version})"
    try:
        app = record.build()
    except (UserError, KeyboardInterrupt):
        raise
    # also SystemExit: a plugin's module must not end the program without a word
    except BaseException as error:
        raise UserError(f"{where} cannot be made: {one_line(error)}") from error
    if not isinstance(app, typer.Typer):
        got = type(app).__name__
        raise UserError(f"{where} cannot be made: its build must return a typer.Typer, got {got}")
    app._add_completion = False  # `ea` itself has it
    app.rich_markup_mode = None  # as `ea` itself, see below
    is_group = len(app.registered_commands) != 1 or app.registered_groups or app.registered_callback
    return _with_whole_summaries(get_group(app)) if is_group else get_command(app)


def _with_whole_summaries(group: Any) -> Any:
    """The group; its help shows first sentences of commands whole, which without rich would be cut at a line's end."""
    for command in group.commands.values():
        if command.help and not command.short_help:
            sentence, dot, _ = " ".join(command.help.split("\n\n")[0].split()).partition(". ")
            command.short_help = sentence + dot.rstrip()
        if hasattr(command, "commands"):
            _with_whole_summaries(command)
    return group


# Help without rich: importing what draws its boxes would take as long as all the rest of `ea --help`.
app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"ea-runtime {version('ea-runtime')}")
        raise typer.Exit


@app.callback()
def _root(
    plugin: Annotated[
        list[str] | None, typer.Option(help="Load a local plugin file; it runs as you. Repeatable.")
    ] = None,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Load no installed plugin package.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Text to video in the manner of EasyAnimate V2: generate, train, prepare data, check models."""


def main(argv: list[str] | None = None) -> None:
    """Runs the program and exits: 0 done, 1 a fault of ours, 2 a wrong request, 130 stopped by Ctrl-C."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Runs the program with these words and returns the exit code. Prints errors as one line on stderr."""
    debug = "--debug" in (argv[: argv.index("--")] if "--" in argv else argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        words, files, no_plugins = _take_global_options(argv)
        # the host is wanted before the command is known, so its options are read ahead, wherever they are
        set_host(make_host(files, entry_points=False if no_plugins else None))
        # for commands that start more of this program
        again = [
            *(f"--plugin={file}" for file in files),
            *(["--no-plugins"] * no_plugins),
            *(["--debug"] * debug),
        ]
        result = app(words, prog_name="ea", standalone_mode=False, obj=again)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except typer.Exit as error:
        return error.exit_code
    except BrokenPipeError:
        # the reader left (`ea plugins | head -1`): Python's own flush at exit must not complain about it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (KeyboardInterrupt, _Stopped, typer.Abort):
        if debug:
            raise
        return _fail("stopped", 130)
    except _UsageError as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)  # pyright: ignore[reportAttributeAccessIssue]
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            typer.echo(message)
            return 2
        return _fail(message + _dash_hint(argv), 2)
    except (ValueError, OSError) as error:
        if debug:
            raise
        return _fail(str(error), 2)
    except Exception as error:
        if debug:
            raise
        return _fail(f"{type(error).__name__}: {error} (a fault of ea; --debug shows where)", 1)


def _dash_hint(argv: list[str]) -> str:
    """The remedy if a word is taken for an option and reads like a sentence; "" if none does."""
    words = argv[: argv.index("--")] if "--" in argv else argv
    sentence = next((word for word in words if re.match(r"-\S* [^-]", word)), None)
    return (
        ""
        if sentence is None
        else f'; text that starts with "-" comes after "--": ea generate -- "{sentence[:40]}"'
    )


def _take_global_options(argv: list[str]) -> tuple[list[str], list[str], bool]:
    words: list[str] = []
    files: list[str] = []
    no_plugins = False
    rest = iter(argv)
    for word in rest:
        if word == "--":
            words += [word, *rest]
        elif word == "--plugin":
            file = next(rest, None)
            if file is None:
                raise UserError("`--plugin` must be followed by a Python file")
            files.append(file)
        elif word.startswith("--plugin="):
            files.append(word.removeprefix("--plugin="))
        elif word == "--no-plugins":
            no_plugins = True
        elif word != "--debug":
            words.append(word)
    return words, files, no_plugins


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    typer.echo(f"error: {line}", err=True)
    return code


if __name__ == "__main__":
    main()
