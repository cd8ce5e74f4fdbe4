"""`ea plan --calibrate`: what the measuring processes print is remembered, or the reason why not is one line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.generation import measure_machine
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


@pytest.mark.parametrize(
    ("times", "rates"),
    [
        # (new, old) blocks of 8 and 64 MiB, in ms: 56 MiB take 4 ms, and a block of no size 1 ms
        ([1.8, 0.3, 8.0, 2.5], {"mapped": 14.7e9, "mappings": 1077.0}),
        ([1.0, 1.0, 3.0, 3.0], {}),  # a system that keeps what is freed
        ([2.0, 0.0, 1.0, 0.0], {}),
    ],
)
def test_mapping_is_what_a_new_block_takes_longer(
    times: list[float], rates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [one / 1000 for one in times]
    monkeypatch.setattr(measure_machine, "_seconds", lambda work, wait: left.pop(0))
    assert measure_machine._mapping_rates() == pytest.approx(rates, rel=0.01)
