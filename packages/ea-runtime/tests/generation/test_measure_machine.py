"""`ea plan --calibrate`: what the measuring processes print is remembered, or the reason why not is one line."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.generation import measure_machine
from ea_runtime.generation.measure_machine import calibrate
from ea_runtime.planning.calibration import read_calibration

FIRST = {"first": {"text": 0.5}, "touched": [1e9, 40_000_000]}
ALL = {
    "program_bytes": 700_000_000,
    "ready_bytes": 40_000_000,
    "rates": {"linear": 1e9},
    "starts": {"text": 0.25},
}


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
    assert (found.program, found.starts, found.ready_bytes) == (
        ALL["program_bytes"],
        ALL["starts"],
        40_000_000,
    )
    assert read_calibration("cpu") == found


def test_what_is_timed_takes_turns() -> None:
    times = {"a": [3.0, 1.0, 2.0], "b": [1.0, 5.0, 5.0]}
    order: list[str] = []

    def timer(name: str) -> float:
        order.append(name)
        return times[name].pop(0)

    timers = {name: partial(timer, name) for name in times}
    assert measure_machine._seconds(timers, min) == {"a": 1.0, "b": 1.0}
    assert order == ["a", "b"] * 3


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
    ("touched", "mapped", "rates"),
    [
        (0.5e9, 1e9, {"touched": 1e9}),  # 2 s a gigabyte, of which every mapping costs 1
        (1e9, None, {"touched": 1e9}),
        (2e9, 1e9, {}),  # no more than any mapping
    ],
)
def test_touching_is_what_the_first_time_costs_beyond_any_mapping(
    touched: float, mapped: float | None, rates: dict[str, float]
) -> None:
    assert measure_machine._touching_rate(touched, mapped) == pytest.approx(rates)


@pytest.mark.parametrize(
    ("times", "ready"),
    [
        ([4, 38] + [67] * 14, 1.373),
        ([67] * 16, 0.0),
        ([60.5, 4] + [67] * 14, 0.0),  # what is fast later on was given back in between
        ([67] * 11 + [21, 4, 55, 67, 67], 0.0),
        ([4] * 9 + [67] * 7, 8.463),
    ],
)
def test_blocks_that_are_fast_at_first_were_ready(
    times: list[float], ready: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    for one in times:
        clock += [clock[-1], clock[-1] + one / 1000]
    left = clock[1:]
    monkeypatch.setattr(measure_machine, "_TOUCHED", 1 << 12)
    monkeypatch.setattr("time.perf_counter", lambda: left.pop(0))
    rate, size = measure_machine._touched()
    assert rate == pytest.approx(4096 / 0.067)
    assert size == pytest.approx(ready * 4096, abs=5)
