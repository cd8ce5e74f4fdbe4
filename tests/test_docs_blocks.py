"""Code in the documentation: commands exist and know their options, Python compiles, TOML and JSON parse.

Quick commands run. Blocks that other tests run whole: docs/hooks.md (test_hooks_documented.py), the walk of
docs/plugins.md (test_plugin_walk.py), the READMEs of packages (test_package_readmes.py), "Start" of README.md
(test_readme.py).
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ea_runtime.cli.main import run
from ea_runtime.plugins.host import set_host

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "examples/*.md",
        "packages/*/README.md",
        "packages/*/src/*/tiny/*.md",
    )
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
#: what a command may begin with, apart from `ea`
PROGRAMS = {".", "cat", "cd", "cp", "curl", "git", "mkdir", "pip", "ray", "ssh", "uv"}
#: commands that take a moment, and that have no input
QUICK = ("ea --version", "ea plugins", "ea data prompts", "ea data draw data/inkline")


def blocks(page: Path, *languages: str) -> list[str]:
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(body) for _, language, body in found if language in languages]


def command_lines(page: Path) -> Iterator[tuple[str, bool]]:
    """Commands of a page, and whether one is whole: those of `sh` blocks are. Prose names options without values, and
    in blocks without a language a meaning may follow."""
    for block in blocks(page, "sh"):
        yield from ((line, True) for line in re.sub(r"\\\n\s*", "", block).splitlines())
    rest = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for line in re.findall(r"`(ea [^`\n]+)`", rest) + re.findall(r"^    (ea .+)$", rest, re.MULTILINE):
        yield re.sub(r" {3,}.*|[\[\]]", "", line), False


def pieces(line: str) -> Iterator[list[str]]:
    """The commands of a line, without variables before them."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        words = line.split()  # an apostrophe in a meaning
    start = 0
    for place, word in enumerate([*words, "&&"]):
        if word in ("&&", "|", ";", ">", "||"):
            piece = words[start:place]
            start = place + (2 if word == ">" else 1)
            while piece and re.match(r"[A-Z_]+=", piece[0]):
                piece = piece[1:]
            if piece:
                yield piece


@pytest.fixture(scope="module")
def tools() -> Iterator[Any]:
    """The module tools/site_commands.py."""
    sys.path.insert(0, str(ROOT / "tools"))
    import site_commands

    yield site_commands
    sys.path.remove(str(ROOT / "tools"))
    set_host(None)


@pytest.fixture(scope="module")
def known(tools: Any) -> dict[str, Any]:
    return tools.commands()


def fault(words: list[str], known: dict[str, Any], tools: Any, is_whole: bool = True) -> str:
    """The fault of a command; "" if there is none."""
    program, *rest = words
    if program == "uv" and rest[:1] == ["run"]:
        while len(words) > 2 and words[2].startswith("-"):
            words = words[:2] + words[3:]
        program, *rest = words[2:]
        if program == "poe":
            tasks = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["poe"]["tasks"]
            return "" if rest[0] in tasks else f"no task {rest[0]}"
        if program in ("pyright", "lint-imports", "ruff"):
            return ""
    if program == "torchrun":
        program, *rest = rest[rest.index("ea") :] if "ea" in rest else ["torchrun"]
    if program in ("python", "python3"):
        return script_fault(rest)
    if program == "pytest":
        missing = [
            word for word in rest if "/" in word and not word.startswith("-") and not (ROOT / word).exists()
        ]
        return f"no {missing[0]}" if missing else ""
    if program not in ("ea", "ea-runtime"):
        return (
            "" if program in PROGRAMS or program == "torchrun" else f"{program} is no program of these pages"
        )
    return ea_fault(rest, known, tools, is_whole)


def script_fault(words: list[str]) -> str:
    """A script exists, and its text has the options."""
    if words[0] in ("-c", "-m", "-"):
        return ""
    path = ROOT / words[0]
    if not path.is_file():
        return f"no {words[0]}"
    text = path.read_text(encoding="utf-8")
    return "".join(
        f"{words[0]} has no {one}" for one in words[1:] if one.startswith("--") and one not in text
    )


def ea_fault(words: list[str], known: dict[str, Any], tools: Any, is_whole: bool) -> str:
    has_plugin = False
    while words and words[0].startswith("-"):
        has_plugin |= words[0] == "--plugin"
        words = words[2:] if words[0] == "--plugin" else words[1:]
    if not words or re.fullmatch(r"[A-Z.]+.*", words[0]):  # `ea COMMAND --help`, `ea ...`
        return ""
    name = ""
    while words and (following := f"{name} {words[0].split('|')[0]}".strip()) in known:
        name, words = following, words[1:]
    if not name:
        return "" if has_plugin else f"no command {words[0]!r}"
    command = known[name]
    if hasattr(command, "commands"):
        shown = not words or words[0].startswith("-") or words[0].isupper() or words[0] == "..."
        return "" if shown else f"`ea {name}` has no command {words[0]!r}"
    context = tools.context(command, name)
    context.resilient_parsing = False
    if not is_whole and words and takes_value(command, words[-1]):
        words = [*words, "VALUE"]
    try:
        _, left, _ = command.make_parser(context).parse_args(words)
    except Exception as error:
        return f"`ea {name}`: {getattr(error, 'message', error)}"
    return f"`ea {name}` takes no {left}" if left and is_whole else ""


def takes_value(command: Any, option: str) -> bool:
    return any(option in one.opts and not one.is_flag for one in command.params if hasattr(one, "is_flag"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist_and_know_their_options(page: Path, known: dict[str, Any], tools: Any) -> None:
    faults = {
        line: told
        for line, is_whole in command_lines(page)
        for words in pieces(line)
        if (told := fault(words, known, tools, is_whole))
    }
    assert not faults


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ea genrate 'a red circle'", "no command 'genrate'"),
        ("ea generate 'a red circle' --stpes 3", "--stpes"),
        ("ea generate 'a red circle' --steps", "requires an argument"),
        ("ea lora verfy style.safetensors", "has no command 'verfy'"),
        ("ea data doctor SET extra", "takes no ['extra']"),
        ("mkdir clips && uv run --no-sync ea train lora c.toml --dryrun", "--dryrun"),
        ("EA_FULL=1 uv run pytest tests/test_none.py", "no tests/test_none.py"),
        ("python examples/batch.py --galery g.webp", "has no --galery"),
        ("python examples/none.py", "no examples/none.py"),
        ("uv run poe sight", "no task sight"),
        ("eaa generate", "no program"),
    ],
)
def test_a_wrong_command_is_caught(line: str, told: str, known: dict[str, Any], tools: Any) -> None:
    (found,) = [one for words in pieces(line) if (one := fault(words, known, tools))]
    assert told in found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_parses(page: Path) -> None:
    for code in blocks(page, "python", "py"):
        compile(code, str(page), "exec", dont_inherit=True)
    for code in blocks(page, "toml"):
        tomllib.loads(code)
    for code in blocks(page, "json"):
        json.loads(code)


def test_code_that_does_not_parse_is_caught(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for language, code in (("python", "pipe(\n"), ("toml", "a = \n"), ("json", "{'a': 1}\n")):
        page.write_text(f"1. text\n\n   ```{language}\n   {code}   ```\n", encoding="utf-8")
        with pytest.raises((SyntaxError, ValueError)):
            test_code_parses(page)


def test_quick_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = {
        line.partition("#")[0].partition(">")[0].strip() for page in PAGES for line, _ in command_lines(page)
    }
    quick = {line for line in lines if line.startswith(QUICK)}
    assert len(quick) >= 5
    for number, line in enumerate(sorted(quick)):
        words = [word.replace("data/inkline", f"drawn{number}") for word in shlex.split(line)[1:]]
        assert run(words) == 0, line
    set_host(None)


def test_the_python_of_the_readmes_is_what_the_package_runs() -> None:
    """ea-runtime's README has the same lines, and test_package_readmes.py runs them."""
    (english,) = blocks(ROOT / "README.md", "python")
    (chinese,) = blocks(ROOT / "README.zh.md", "python")
    (package,) = blocks(ROOT / "packages/ea-runtime/README.md", "python")
    assert english == chinese
    assert set(english.splitlines()[:4]) <= set(package.splitlines())
