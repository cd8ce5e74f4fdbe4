"""Forty broken, slow, rude or clashing plugins, all installed at once: the program keeps working.

The last tests remove one defence at a time and check that these plugins reveal it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.plugins import discovery
from ea_runtime.plugins import host as plugins
from ea_runtime.plugins.host import Host
from ea_runtime.testing import write_package

HEAD = """
from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import *
"""


def hook(body: str, name: str = "ea_samplers", parameters: str = "") -> str:
    return f"{HEAD}\n@hookimpl\ndef {name}({parameters}):\n    {body}\n"


def sampler(name: str) -> str:
    return hook(f"return [SamplerRecord({name!r}, 'for a test', lambda **config: None)]")


def command(name: str, build: str) -> str:
    return hook(f"return [CommandRecord({name!r}, 'for a test', lambda: {build})]", "ea_commands")


#: package -> (its code, words that its state must contain)
BROKEN = {
    # during import
    "import-missing": ("import a_package_that_nobody_has", "ModuleNotFoundError"),
    "import-syntax": ("def broken(:\n    pass", "SyntaxError"),
    "import-null": ("x = '\0'", "broken: "),
    "import-raises": (
        "raise RuntimeError('first line\\nsecond line')",
        "RuntimeError: first line second line",
    ),
    "import-silent": ("raise ValueError", "broken: ValueError"),
    "import-long": ("raise ValueError('x' * 100_000)", "…"),
    "import-unprintable": ("class E(Exception):\n    def __str__(self): raise E\nraise E", "broken: E"),
    "import-exit": ("import sys\nsys.exit(3)", "it called exit(3)"),
    "import-exit-none": ("raise SystemExit", "it called exit()"),
    "import-base": ("class Outcome(BaseException): pass\nraise Outcome('no')", "Outcome: no"),
    "import-generator-exit": ("raise GeneratorExit", "GeneratorExit"),
    "import-recursion": ("def f(): f()\nf()", "RecursionError"),
    "import-partly": (sampler("half") + "\n1 / 0", "ZeroDivisionError"),
    "import-old-host": ("from ea_runtime.hookspecs import hook_of_tomorrow", "ImportError"),
    # when its hook is called
    "hook-raises": (hook("raise KeyError('gone')"), "ea_samplers: KeyError: 'gone'"),
    "hook-exit": (hook("raise SystemExit(9)"), "it called exit(9)"),
    "hook-base": (hook("raise GeneratorExit('x')"), "GeneratorExit"),
    "hook-recursion": (hook("return ea_samplers()"), "RecursionError"),
    "hook-second-raises": (sampler("half") + hook("1 / 0", "ea_vaes"), "ea_vaes: ZeroDivisionError"),
    "hook-none": (hook("pass"), "must return a list of SamplerRecord, got NoneType"),
    "hook-text": (hook("return 'euler'"), "got str"),
    "hook-generator": (hook("yield SamplerRecord('x', 'x', print)"), "got generator"),
    "hook-names": (hook("return ['euler']"), "must return SamplerRecords, got a str"),
    "hook-wrong-kind": (hook("return [VaeRecord('x', 'x', print)]"), "got a VaeRecord"),
    "hook-class": (hook("return [SamplerRecord]"), "got a type"),
    "hook-twice": (hook("return [SamplerRecord('x', 'x', print)] * 2"), "two records called 'x'"),
    "hook-argument": (hook("return []", parameters="config"), "PluginValidationError"),
    "hook-misspelt": (
        hook("return []", "ea_sampler"),
        "there is no hook 'ea_sampler'; did you mean 'ea_samplers'?",
    ),
    "hook-unmarked": ("def ea_samplers():\n    return []", "its ea_samplers lacks @hookimpl"),
    "hook-missing": ("x = 1", "it has no hook"),
    # its records
    "record-name": (sampler("Fast Sampler"), "`name` of a SamplerRecord must be"),
    "record-empty-name": (sampler(""), "`name` of a SamplerRecord must be"),
    "record-build": (hook("return [SamplerRecord('x', 'x', None)]"), "must be callable"),
    "record-summary": (hook("return [SamplerRecord('x', 'a\\nb', print)]"), "must be one line"),
    "record-classes": (
        hook("return [VaeRecord('x', 'x', print, class_names='Vae')]", "ea_vaes"),
        "must be a tuple",
    ),
}
#: these work, though rude, slow, or claiming a name that another has
ODD = {
    "odd-prints": "print('{not json')\n" + sampler("prints"),
    "odd-slow": "import time\ntime.sleep(0.2)\n" + sampler("slow"),
    "odd-nothing": hook("return []"),
    "clash-one": sampler("contested"),
    "clash-two": sampler("contested"),
    "clash-ours": sampler("ddim"),
    "clash-command": command("train", "None"),
    "good-one": sampler("good-one"),
    "good-two": hook("return [CaptionerRecord('good-two', 'for a test', print)]", "ea_captioners"),
    "command-exits": command("exits", "exit(4)"),
    "command-raises": command("raises", "1 / 0"),
    "command-no-app": command("no-app", "42"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("site")
    for package, (code, _) in BROKEN.items():
        write_package(folder, package, code)
    for package, code in ODD.items():
        write_package(folder, package, code)
    write_package(folder, "no-such-attribute", "x = 1", target="no_such_attribute:plugin")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def host(site: Path) -> Host:
    return Host()


@pytest.mark.parametrize("package", BROKEN)
def test_each_broken_plugin_says_what_is_wrong_in_one_line(host: Host, package: str) -> None:
    state = host.plugins[package].state
    assert state.startswith("broken: ")
    assert BROKEN[package][1] in state
    assert "\n" not in state
    assert len(state) < 400
    assert host.plugins[package].entries == []


def test_the_others_work(host: Host) -> None:
    assert len(BROKEN) + len(ODD) >= 40
    samplers = host.records("samplers")
    assert {"prints", "slow", "good-one", "euler", "dpm++"} <= samplers.keys()
    # nothing of a plugin that broke halfway, and no name claimed by two
    assert not {"half", "x", "contested", "ddim"} & samplers.keys()
    assert "good-two" in host.records("captioners")
    assert host.plugins["no-such-attribute"].state.startswith("broken: AttributeError")
    assert host.clashes().keys() == {("samplers", "contested"), ("samplers", "ddim"), ("commands", "train")}
    assert host.plugins["odd-nothing"].state == "ok"
    with pytest.raises(UserError, match=r"clash-one .* and clash-two"):
        host.get("samplers", "contested")


def ea(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "EA_PLUGINS_BLOCK": "",
    }
    command = [sys.executable, "-m", "ea_runtime.cli.main", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_the_program_lists_them_all_and_keeps_stdout_clean(site: Path) -> None:
    done = ea(site, "plugins", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert BROKEN.keys() <= {row["name"] for row in rows if row["state"] == "broken"}
    assert {row["name"] for row in rows if row["state"] == "duplicate"} == {"contested", "ddim", "train"}
    assert "Traceback" not in done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING: plugin ")]
    assert len(warnings) == len(BROKEN) + 1  # no-such-attribute


def test_the_other_commands_work(site: Path) -> None:
    done = ea(site, "models", "list", "--json")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    done = ea(site, "--help")
    assert done.returncode == 0
    for words in ("Brought by two plugins", "generate", "no-app"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "vae", "x.toml"], "two plugins bring the command 'train'"),
        (
            ["exits"],
            "command 'exits' of plugin command-exits (package command-exits 1.0) cannot be made: SystemExit",
        ),
        (["raises"], "cannot be made: ZeroDivisionError: division by zero"),
        (["no-app"], "its build must return a typer.Typer, got int"),
    ],
)
def test_a_broken_command_is_one_line_and_code_2(
    host: Host,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    from ea_runtime.cli import main

    monkeypatch.setattr(main, "make_host", lambda *args, **kwargs: host)
    assert main.run(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# --- twins: the same plugins against a host without one of its defences -------------------------------------------


@contextlib.contextmanager
def unguarded(info: object) -> Iterator[None]:
    yield


def only_exceptions(info: object) -> contextlib.AbstractContextManager[None]:
    @contextlib.contextmanager
    def guard() -> Iterator[None]:
        try:
            yield
        except discovery.PluginFault:
            raise
        except Exception as error:
            raise discovery.PluginFault(discovery.one_line(error)) from error

    return guard()


@pytest.mark.parametrize(
    ("module", "name", "stand_in"),
    [
        (plugins, "watched", unguarded),
        (plugins, "watched", only_exceptions),
        (discovery, "_check_names", lambda plugin: None),
        (discovery, "_check_unique", lambda records: None),
        (discovery, "_ask", lambda function, hook, record_type: function() or []),
        (discovery, "one_line", str),
    ],
)
def test_a_host_without_a_defence_is_found_out(
    site: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: str, stand_in: Callable[..., object]
) -> None:
    monkeypatch.setattr(module, name, stand_in)
    try:
        host = Host()
    except BaseException:
        return
    wrong = [
        package
        for package, (_, reason) in BROKEN.items()
        if reason not in host.plugins[package].state or "\n" in host.plugins[package].state
    ]
    assert wrong, f"no plugin here notices that {name} is gone"
