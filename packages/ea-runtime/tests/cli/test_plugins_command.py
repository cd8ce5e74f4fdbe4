"""`ea plugins`: the table, its JSON, and how plugins that are not well are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ea_runtime.cli.main import run
from ea_runtime.plugins.host import set_host
from ea_runtime.testing import write_package

SAMPLER = """
from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import SamplerRecord

@hookimpl
def ea_samplers():
    return [SamplerRecord("{name}", "what [red]it[/red] is", lambda **config: None)]
"""


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("EA_PLUGINS_BLOCK", "left-out,never-heard-of")
    monkeypatch.delenv("EA_NO_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    write_package(tmp_path, "plugins-shown-well", SAMPLER.format(name="well"), version="1.2.3")
    write_package(tmp_path, "plugins-shown-broken", "raise RuntimeError('[bold]out of[/bold] order')")
    write_package(tmp_path, "plugins-shown-clash", SAMPLER.format(name="euler"))
    write_package(tmp_path, "plugins-shown-out", "1 / 0", plugin="left-out")
    yield tmp_path
    set_host(None)


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert run(["plugins", *words]) == 0
    return capsys.readouterr().out.splitlines()


def row(shown: list[str], *cells: str) -> bool:
    return any(line.split()[: len(cells)] == list(cells) for line in shown)


def test_the_table_fits_80_columns_and_names_state_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    shown = lines(capsys)
    table = shown[: shown.index(next(line for line in shown if line.startswith("duplicate:")))]
    assert table[0].split() == ["name", "kind", "package", "version", "state"]
    assert max(map(len, table)) <= 80
    assert row(table, "dpm++", "samplers", "ea-runtime", "0.2.0", "ok")
    assert row(table, "well", "samplers", "plugins-shown-well", "1.2.3", "ok")
    assert row(table, "euler", "samplers", "ea-runtime", "0.2.0", "duplicate")
    assert row(table, "euler", "samplers", "plugins-shown-clash", "1.0", "duplicate")
    assert row(table, "plugins-shown-broken", "plugin", "plugins-shown-broken", "1.0", "broken")
    assert row(table, "left-out", "plugin", "plugins-shown-out", "1.0", "blocked")

    notes = shown[len(table) :]
    assert any(
        line.startswith("duplicate: two plugins bring the sampler 'euler': ea-runtime") for line in notes
    )
    assert any("RuntimeError: [bold]out of[/bold] order" in line for line in notes)
    assert any("'never-heard-of'" in line for line in notes)


def test_a_wide_terminal_shows_summaries_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    shown = lines(capsys)
    assert shown[0].split()[-3:] == ["what", "it", "is"]
    assert any(line.endswith("what [red]it[/red] is") for line in (line.rstrip() for line in shown))


def test_one_kind_only_and_what_could_not_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    shown = lines(capsys, "--kind", "text_encoders")
    assert row(shown, "t5", "text_encoders", "ea-runtime")
    assert not any("samplers" in line for line in shown)
    # it may have brought one
    assert row(shown, "plugins-shown-broken", "plugin")


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads("\n".join(lines(capsys, "--json")))
    keys = {"name", "kind", "package", "version", "plugin", "state", "reason", "summary"}
    assert all(one.keys() == keys for one in rows)
    by_name = {(one["name"], one["package"]): one for one in rows}
    assert by_name["well", "plugins-shown-well"] == {
        "name": "well",
        "kind": "samplers",
        "package": "plugins-shown-well",
        "version": "1.2.3",
        "plugin": "plugins-shown-well",
        "state": "ok",
        "reason": "",
        "summary": "what [red]it[/red] is",
    }
    assert by_name["plugins-shown-broken", "plugins-shown-broken"]["reason"].startswith("RuntimeError: ")
    assert by_name["left-out", "plugins-shown-out"]["state"] == "blocked"
    assert "two plugins" in by_name["euler", "ea-runtime"]["reason"]
