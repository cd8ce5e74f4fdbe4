"""`ea plan --calibrate`: what the measuring process prints is remembered, or the reason why not is one line."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.generation import measure_machine
from ea_runtime.generation.measure_machine import calibrate
from ea_runtime.planning.calibration import read_calibration

ALL = {
    "program_bytes": 700_000_000,
    "ready_bytes": 40_000_000,
    "rates": {"linear": 1e9},
    "starts": {"text": 0.25},
}


def answer(monkeypatch: pytest.MonkeyPatch, stdout: str, stderr: str = "") -> list[list[str]]:
    """A process prints this; its arguments."""
    seen: list[list[str]] = []
    real = subprocess.run

    def run(words: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
        if words[1:2] != ["-m"]:  # the processor's name
            return real(words, **settings)  # pyright: ignore[reportCallIssue, reportArgumentType]
        seen.append(words[3:])
        return subprocess.CompletedProcess(words, 0, stdout, stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_what_the_process_finds_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EA_CACHE", str(tmp_path))
    seen = answer(monkeypatch, f"a warning\n{json.dumps(ALL)}", "noise")
    found = calibrate("cpu")
    assert seen == [["cpu"]]
    assert (found.program, found.starts, found.ready_bytes) == (
        ALL["program_bytes"],
        ALL["starts"],
        40_000_000,
    )
    assert read_calibration("cpu") == found


def test_what_is_timed_takes_turns_until_two_times_are_alike() -> None:
    times = {"a": [3.0, 1.0, 2.0], "b": [1.0, 5.0, 5.0], "c": [1.0, 1.04]}
    order: list[str] = []

    def timer(name: str) -> float:
        order.append(name)
        return times[name].pop(0)

    timers = {name: partial(timer, name) for name in times}
    assert measure_machine._seconds(timers, statistics.median) == {"a": 2.0, "b": 5.0, "c": 1.02}
    assert "".join(order) == "abcabcab"


@pytest.mark.parametrize(
    ("stdout", "stderr", "reason"),
    [
        ("", "", "it printed nothing"),
        ("no JSON", "a\nKilled\n", "Killed"),
        ('{"rates": {}}', "", "KeyError.*program_bytes"),
    ],
)
def test_a_process_that_fails_is_one_line(
    stdout: str, stderr: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EA_CACHE", str(tmp_path))
    answer(monkeypatch, stdout, stderr)
    with pytest.raises(UserError, match=f"`--calibrate` could not measure cpu: .*{reason}"):
        calibrate("cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the child is started anew")
def test_a_child_that_is_killed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_machine, "_import", lambda: 0.0)
    monkeypatch.setattr(measure_machine, "_loaded", lambda device: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="the process of the first picture ended"):
        measure_machine._measure("cpu")


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
        ([67, 40] * 5 + [67, 21, 4, 55, 67, 67], 0.0),
        ([4] * 9 + [67] * 7, 8.463),
    ],
)
def test_blocks_that_are_fast_at_first_were_ready(
    times: list[float], ready: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(times, monkeypatch)
    rate, size = measure_machine._touched()
    assert rate == pytest.approx(4096 / 0.067)
    assert size == pytest.approx(ready * 4096, abs=5)


@pytest.mark.parametrize(
    ("times", "left"),
    [
        ([67] * 16, 11),
        ([4, 38] + [67] * 14, 8),
        ([67, 50] * 8, 0),  # never alike
        ([4] * 16, 0),  # what is ready could be all of it
    ],
)
def test_touching_ends_once_the_last_blocks_are_alike(
    times: list[float], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = touch(times, monkeypatch)
    measure_machine._touched()
    assert len(clock) == 2 * left


def touch(times: list[float], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Blocks of a page take these milliseconds; the readings of the clock that are left."""
    clock = [0.0]
    for one in times:
        clock += [clock[-1], clock[-1] + one / 1000]
    left = clock[1:]
    monkeypatch.setattr(measure_machine, "_TOUCHED", 1 << 12)
    monkeypatch.setattr("time.perf_counter", lambda: left.pop(0))
    return left
