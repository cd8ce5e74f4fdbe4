"""docs/hooks.md: every hook has a section, and every code block there runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from ea_runtime.hookspecs import KINDS
from ea_runtime.plugins.host import set_host
from ea_runtime.testing import host_with

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "hooks.md").read_text(encoding="utf-8")
_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = {
    title: _FENCE.findall(body)
    for title, body in re.findall(r"^## (\w+)$\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}
HOOKS = {hook: (kind, record_type) for kind, (hook, record_type) in KINDS.items()}


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EA_NO_PLUGINS", "1")
    yield
    set_host(None)


def write_plugin(hook: str, folder: Path) -> ModuleType:
    """The first code block of a section as a file, imported as `--plugin` would."""
    path = folder / f"documented_{hook}.py"
    path.write_text(SECTIONS[hook][0], encoding="utf-8")
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_section_for_every_hook_and_no_other() -> None:
    assert SECTIONS.keys() == HOOKS.keys()
    assert all(f"[`{hook}`](#{hook})" in TEXT for hook in HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_section_has_a_plugin_and_a_trial(hook: str) -> None:
    assert len(SECTIONS[hook]) == 2, "one piece of code is the plugin, the other tries it out"
    plugin, trial = SECTIONS[hook]
    assert f"@hookimpl\ndef {hook}():" in plugin
    assert "plugin" in trial
    assert "assert " in trial


@pytest.mark.parametrize("hook", HOOKS)
def test_the_plugin_brings_its_kind_and_loads_nothing_heavy(hook: str, tmp_path: Path) -> None:
    kind, record_type = HOOKS[hook]
    heavy = {name for name in ("torch", "diffusers", "transformers") if name not in sys.modules}
    module = write_plugin(hook, tmp_path)
    with host_with(module) as host:
        entries = host.plugins["under-test"].entries
        assert [(entry.kind, type(entry.record)) for entry in entries] == [(kind, record_type)]
    assert not heavy & sys.modules.keys()


@pytest.mark.parametrize("hook", HOOKS)
def test_the_trial_runs(hook: str, tmp_path: Path) -> None:
    trial = compile(SECTIONS[hook][1], f"docs/hooks.md ({hook})", "exec")
    exec(trial, {"__name__": f"trial_{hook}", "plugin": write_plugin(hook, tmp_path)})


def test_a_trial_that_is_wrong_would_be_found_out(tmp_path: Path) -> None:
    wrong = SECTIONS["ea_scorers"][1].replace("0.2", "0.3")
    with pytest.raises(AssertionError):
        exec(compile(wrong, "twin", "exec"), {"plugin": write_plugin("ea_scorers", tmp_path)})
