"""docs/stability.md names every hook; a deprecation warns, gives two minor versions, and ends when it said."""

from __future__ import annotations

import ast
import re
import tomllib
import warnings
from pathlib import Path

import pluggy
import pytest

from ea_runtime import hookspecs
from ea_runtime.deprecation import EaDeprecationWarning, deprecated, deprecation

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
HOOKS = {name for name in vars(hookspecs) if name.startswith("ea_")}


def unnamed(page: str) -> set[str]:
    """Hooks without a row in the table of hooks."""
    return HOOKS - set(re.findall(r"^\| `(ea_\w+)` \|", page, re.MULTILINE))


def test_every_hook_has_a_row() -> None:
    assert not unnamed(PAGE)


def test_a_hook_without_a_row_is_caught() -> None:
    assert unnamed(PAGE.replace("| `ea_samplers` |", "| `ea_sampler` |")) == {"ea_samplers"}


def overdue(source: str, version: str) -> list[str]:
    """Names whose `deprecation(...)` or `deprecated(...)` says that this version no longer has them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "deprecation",
            "deprecated",
        ):
            given = {
                one.arg: ast.literal_eval(one.value)
                for one in node.keywords
                if isinstance(one.value, ast.Constant)
            }
            if "gone_in" in given and tuple(map(int, given["gone_in"].split("."))) <= tuple(
                map(int, version.split(".")[:2])
            ):
                found.append(ast.unparse(node.args[0]))
    return found


def test_nothing_deprecated_is_overdue() -> None:
    package = ROOT / "packages" / "ea-runtime"
    version = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for path in sorted(ROOT.glob("packages/*/src/**/*.py")):
        text = path.read_text(encoding="utf-8")
        if "gone_in=" in text:
            assert not overdue(text, version), path


def test_an_overdue_name_is_caught() -> None:
    source = 'X = deprecation("ea_old", instead="ea_new", since="0.3", gone_in="0.5")'
    assert overdue(source, "0.4.2") == []
    assert overdue(source, "0.5.0") == ["'ea_old'"]


def test_a_plugin_with_a_deprecated_hook_warns_and_another_does_not() -> None:
    class Specs:
        @hookspecs.hookspec(
            warn_on_impl=deprecation("ea_old", instead="ea_samplers", since="0.3", gone_in="0.5")
        )
        def ea_old(self) -> None: ...

        @hookspecs.hookspec
        def ea_samplers(self) -> None: ...

    class Old:
        @hookspecs.hookimpl
        def ea_old(self) -> None: ...

    class New:
        @hookspecs.hookimpl
        def ea_samplers(self) -> None: ...

    manager = pluggy.PluginManager("ea")
    manager.add_hookspecs(Specs)
    with pytest.warns(
        EaDeprecationWarning, match=r"ea_old is deprecated since ea-runtime 0\.3.*use ea_samplers"
    ):
        manager.register(Old())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager.register(New())


def test_a_deprecated_function_warns_where_it_is_called() -> None:
    @deprecated("double", instead="twice", since="0.3", gone_in="1.0")
    def double(number: int) -> int:
        return 2 * number

    with pytest.warns(EaDeprecationWarning, match=r"gone in 1\.0; use twice") as caught:
        assert double(4) == 8
    assert caught[0].filename == __file__


@pytest.mark.parametrize("gone_in", ["0.4", "0.3", "0.5.1", "soon"])
def test_too_short_a_time_is_refused(gone_in: str) -> None:
    with pytest.raises(ValueError):
        deprecation("x", instead="y", since="0.3", gone_in=gone_in)
