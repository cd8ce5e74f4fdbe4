"""`ea plan --calibrate`: what the measuring processes print is remembered, or the reason why not is one line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from ea_runtime.errors import UserError
from ea_runtime.generation import measure_machine
from ea_runtime.generation.measure_machine import calibrate
from ea_runtime.planning.calibration import read_calibration

FIRST = {
    "first": {"text": 0.5},
    "videos": {"middle": [{"decoding": 1.0}], "opening": 0.07},
    "touched": [1e9, 40_000_000],
}
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


@pytest.mark.parametrize(
    ("times", "rates"),
    [
        # (64 rows, 1,536 rows) of layers of 768x768 and 768x3,072: 1,472 rows take 46 ms, and the weights 1 ms
        ([0.001, 0.002, 0.0166, 0.0324], {"linear": 1.8874e11, "weights": 1.1796e10}),
        (
            [0.001, 0.001, 0.0245, 0.0245],
            {"linear": 1.842e11},
        ),  # no weights are seen: 2 ms for 64 rows, 49 for all
        ([0.02, 0.02, 0.01, 0.01], {"linear": 4.53e11}),  # a machine that was busy
    ],
)
def test_linear_layers_of_few_rows_show_what_their_weights_take(
    times: list[float], rates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(times)
    monkeypatch.setattr(measure_machine, "_seconds", lambda work, wait: left.pop(0))
    found = measure_machine._linear_rates(torch.nn.Linear, 1, {}, lambda: None)
    assert found == pytest.approx(rates, rel=0.01)


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
