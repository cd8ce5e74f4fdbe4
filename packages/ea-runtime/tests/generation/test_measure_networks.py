"""Rates that follow from the time of a network whose other rates are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from ea_runtime.generation.measure_networks import _solve, bytes_of_networks, starts
from ea_runtime.planning.calibration import Calibration, write_calibration

WORK = {"linear": 4e9, "calls": 500, "unknown": 7.0}


@pytest.mark.parametrize(
    ("seconds", "rate"),
    [
        (5.0, 500.0),  # linear layers take 4 s of it
        (4.5, 1000.0),
        (4.01, 2000.0),  # at most ten times that of the single operation
        (400.0, 20.0),  # at least a tenth
        (3.0, 200.0),  # the others alone take longer: a busy machine
    ],
)
def test_the_rate_that_is_unknown_follows_from_the_time(seconds: float, rate: float) -> None:
    rates = {"linear": 1e9, "calls": 1.0}
    _solve(rates, {"calls": 200.0}, "calls", WORK, seconds)
    assert rates == {"linear": 1e9, "calls": pytest.approx(rate)}


def test_a_start_is_what_the_first_picture_takes_beyond_its_work() -> None:
    rates = dict.fromkeys(("linear", "attention", "convolution", "winograd", "moved", "swept", "calls"), 1e12)
    rates |= {"disk": 1e12, "imports": 1.0}
    found = starts("cpu", rates, {"text": 0.5, "denoising": 0.0, "nothing": 3.0})
    assert found["text"] == pytest.approx(0.5, abs=0.01)
    assert found["denoising"] == 0.0
    assert "nothing" not in found
    plan = Calibration(rates=rates, starts=found)
    assert plan.seconds("text", {}) == found["text"]
    assert plan.seconds("decoding", {}) == 0.0


def test_an_earlier_calibration_does_not_count_as_the_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EA_CACHE", str(tmp_path))
    found = bytes_of_networks("cpu")
    assert write_calibration("cpu", Calibration(program_bytes=900_000_000))
    assert bytes_of_networks("cpu") == found
