"""Lessons of runs for the next plans, and a cache that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.planning.calibration import (
    PROGRAM_BYTES,
    Calibration,
    calibration_file,
    learned,
    read_calibration,
    write_calibration,
)
from ea_runtime.planning.room import find_room, parse_memory

RATES = {"linear": 1e9, "disk": 1e9, "imports": 1.0}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EA_CACHE", str(tmp_path / "cache"))


def test_runs_correct_the_next_plans() -> None:
    calibration = Calibration(rates=RATES)
    assert calibration.seconds("denoising", {"linear": 2_000_000_000}) == 2.0
    for taken in (3.0, 30.0, 3.0):  # one run on a busy machine
        planned = calibration.seconds("denoising", {"linear": 2_000_000_000})
        assert planned is not None
        calibration = learned(calibration, 600, 700, 750, {"denoising": (planned, taken)})
    assert calibration.seconds("denoising", {"linear": 2_000_000_000}) == pytest.approx(3.0)
    assert calibration.seconds("decoding", {"linear": 2_000_000_000}) == 2.0
    assert calibration.program == 650
    # a large run teaches nothing about the program itself
    assert learned(calibration, 650, 6000, 9000, {}).program == 650
    assert write_calibration("cpu", calibration)
    assert read_calibration("cpu") == calibration
    assert read_calibration("cuda") == Calibration()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 1, "machines": {}}', '{"version": 0, "machines": []}']
)
def test_a_damaged_cache_is_an_empty_one(text: str) -> None:
    assert write_calibration("cpu", Calibration(1, RATES))
    assert read_calibration("cpu").program == 1
    calibration_file().write_text(text)
    assert read_calibration("cpu").program == PROGRAM_BYTES


def test_hostile_values_are_left_out() -> None:
    assert write_calibration("cpu", Calibration(5, RATES | {"linear": -1.0}))
    assert read_calibration("cpu") == Calibration()
    assert write_calibration(
        "cpu", Calibration(5, RATES, ({"factors": {"text": "x"}}, {"factors": {"text": 2.0}}))
    )
    assert read_calibration("cpu").factor("text") == 2.0


def test_memory_and_device() -> None:
    assert parse_memory("24GiB") == 24 << 30
    assert parse_memory("1.5 gb") == 1_500_000_000
    for wrong in ("24", "GiB", "-1GB", "0GB", "1e3GB", "9" * 40 + "GB"):
        with pytest.raises(UserError, match="`memory` must be a size such as 24GiB"):
            parse_memory(wrong)
    with pytest.raises(UserError, match="`device` must be cpu, cuda, cuda:N or mps, got 'tpu'"):
        find_room("tpu")
    assert find_room("cpu", 5).free == 5
    assert find_room("cuda:7", 24 << 30).kind == "cuda"
