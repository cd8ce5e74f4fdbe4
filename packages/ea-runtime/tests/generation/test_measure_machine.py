"""`ea plan --calibrate`: what the measuring processes print is remembered, or the reason why not is one line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.generation.measure_machine import calibrate
from ea_runtime.planning.calibration import read_calibration

FIRST = {"text": 0.5}
ALL = {"program_bytes": 700_000_000, "rates": {"linear": 1e9}, "starts": {"text": 0.25}}


def answer(monkeypatch: pytest.MonkeyPatch, *outputs: tuple[str, str]) -> list[list[str]]:
    """Processes print (stdout, stderr), one after the other; their arguments."""
    seen: list[list[str]] = []
    left = list(outputs)

    real = subprocess.run

    def run(words: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
        if words[1:2] != ["-m"]:  # the processor's name
            return real(words, **settings)  # pyright: ignore[reportCallIssue, reportArgumentType]
        seen.append(words[3:])
        return subprocess.CompletedProcess(words, 0, *left.pop(0))

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_two_processes_measure_and_the_second_knows_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EA_CACHE", str(tmp_path))
    seen = answer(monkeypatch, (f"a warning\n{json.dumps(FIRST)}\n", ""), (json.dumps(ALL), "noise"))
    found = calibrate("cpu")
    assert seen == [["cpu", "--first"], ["cpu", json.dumps(FIRST)]]
    assert (found.program, found.starts) == (ALL["program_bytes"], ALL["starts"])
    assert read_calibration("cpu") == found


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ([("", "")], "it printed nothing"),
        ([("no JSON", "a\nKilled\n")], "Killed"),
        ([("{}", ""), ('{"rates": {}}', "")], "KeyError.*program_bytes"),
    ],
)
def test_a_process_that_fails_is_one_line(
    outputs: list[tuple[str, str]], reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EA_CACHE", str(tmp_path))
    answer(monkeypatch, *outputs)
    with pytest.raises(UserError, match=f"`--calibrate` could not measure cpu: .*{reason}"):
        calibrate("cpu")
    assert not list(tmp_path.iterdir())
