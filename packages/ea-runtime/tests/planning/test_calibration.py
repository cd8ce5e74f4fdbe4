"""Lessons of runs for the next plans, and a cache that cannot be read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.planning import calibration
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
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"version": 5}',
        '{"version": 5, "machines": []}',
        '{"version": 4}',
        '{"version": 4, "machines": []}',
        '{"version": 3, "machines": {}}',
    ],
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


# --- each number by itself -----------------------------------------------------------------------------------


def test_seconds_are_work_over_rates_and_what_loading_takes() -> None:
    one = Calibration(rates={"linear": 10.0, "moved": 4.0, "disk": 2.0, "imports": 3.0})
    assert one.seconds("text", {"linear": 20, "moved": 8, "unknown": 99}) == 4.0
    assert one.seconds("text", {"linear": 20}, disk=6) == 5.0
    assert one.seconds("loading", {"linear": 20}, disk=6) == 8.0
    started = Calibration(rates=one.rates, starts={"text": 0.5})
    assert (started.seconds("text", {}), started.seconds("loading", {})) == (0.5, 3.0)
    assert Calibration().seconds("text", {"linear": 20}) is None
    slow = Calibration(rates=one.rates, runs=({"factors": {"text": 2.0}}, {"factors": {"text": 4.0}}, {}))
    assert slow.seconds("text", {"linear": 20}) == 6.0
    assert slow.seconds("denoising", {"linear": 20}) == 2.0
    assert (Calibration().program_bytes, Calibration().program) == (640_000_000, 640_000_000)
    with pytest.raises(AttributeError):
        one.program_bytes = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_the_program_is_what_small_runs_showed_or_what_is_known() -> None:
    one = Calibration(100, RATES, ({"program": 120}, {"factors": {}}, {"program": 130}, {"program": 500}))
    assert one.program == 130
    known = one.with_program(70)
    assert (known.program_bytes, known.program) == (70, 70)
    assert known.runs == ({}, {"factors": {}}, {}, {})
    assert known.rates == RATES


def test_a_run_teaches_what_it_took_over_what_was_planned() -> None:
    one = Calibration(100, RATES, ({"factors": {"text": 2.0}},))
    again = learned(one, 100, 149, 170, {"text": (4.0, 6.0), "denoising": (1.0, 3.0), "decoding": (0.0, 5.0)})
    assert again.runs[-1] == {
        "predicted": 149,
        "measured": 170,
        "seconds": {"text": [4.0, 6.0], "denoising": [1.0, 3.0], "decoding": [0.0, 5.0]},
        "factors": {"text": 3.0, "denoising": 3.0},
        "program": 121,
    }
    assert (again.program_bytes, again.rates, again.runs[0]) == (100, RATES, one.runs[0])
    # networks of half the program's size or more show nothing of it; and it never seems less than half of what it was
    assert "program" not in learned(one, 100, 150, 170, {}).runs[-1]
    assert "program" not in learned(one, 100, 149, None, {}).runs[-1]
    assert learned(one, 100, 149, 60, {}).runs[-1]["program"] == 50


def test_the_last_fifty_runs_are_remembered() -> None:
    one = Calibration(rates=RATES)
    for number in range(52):
        one = learned(one, 600, 6000 + number, None, {})
    assert [run["predicted"] for run in one.runs] == list(range(6002, 6052))


@pytest.mark.parametrize(
    ("run", "is_sound"),
    [
        ({"factors": {}}, True),
        ({"factors": {"text": 2}, "program": 5}, True),
        ({"factors": {"text": 0}}, False),
        ({"factors": {"text": None}}, False),
        ({"factors": {"text": 1.0}, "program": 0}, False),
        ({"factors": {"text": 1.0}, "program": "5"}, False),
        ({"factors": [1.0]}, False),
        ({}, False),
        ([], False),
        (None, False),
    ],
)
def test_runs_that_are_none_are_left_out(run: object, is_sound: bool) -> None:
    assert write_calibration("cpu", Calibration(5, RATES, (run, {"factors": {"text": 3.0}})))  # pyright: ignore
    found = read_calibration("cpu")
    assert len(found.runs) == 1 + is_sound
    assert found.program_bytes == 5


@pytest.mark.parametrize(
    "harm",
    [{"rates": {"linear": 0.0}}, {"rates": {"linear": float("nan")}}, {"rates": {"linear": "x"}}, {"rates": []},
     {"rates": None}, {"starts": {"text": -0.1}}, {"starts": {"text": float("nan")}}, {"starts": 7}, {"runs": 7},
     {"program_bytes": "x"}, {"program_bytes": None}, {"ready_bytes": -1}, {"ready_bytes": None}],
)  # fmt: skip
def test_a_machine_with_odd_numbers_is_measured_again(harm: dict[str, object]) -> None:
    assert write_calibration("cpu", Calibration(5, RATES))
    table = json.loads(calibration_file().read_text())
    (key,) = table["machines"]
    table["machines"][key] |= harm
    calibration_file().write_text(json.dumps(table))
    assert read_calibration("cpu") == Calibration()
    del table["machines"][key]["rates"]
    calibration_file().write_text(json.dumps(table))
    assert read_calibration("cpu") == Calibration()


def test_the_file_of_this_version() -> None:
    one = Calibration(5, RATES, ({"factors": {}},), {"text": 0.0, "loading": 0.5}, 7)
    assert write_calibration("cpu", one)
    table = json.loads(calibration_file().read_text())
    assert (table["version"], list(table)) == (5, ["version", "machines"])
    assert list(table["machines"].values()) == [
        {
            "program_bytes": 5,
            "rates": RATES,
            "runs": [{"factors": {}}],
            "starts": one.starts,
            "ready_bytes": 7,
        }
    ]
    assert read_calibration("cpu") == one


def test_the_file_is_in_ea_cache_or_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert calibration_file() == tmp_path / "cache" / "plans.json"
    monkeypatch.delenv("EA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert calibration_file() == tmp_path / "ea" / "plans.json"


def test_machines_devices_and_threads_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, device in enumerate(("cpu", "cuda"), 1):
        assert write_calibration(device, Calibration(number, RATES))
    assert [read_calibration(device).program for device in ("cpu", "cuda")] == [1, 2]
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    assert read_calibration("cpu") == Calibration()
    (key, _) = json.loads(calibration_file().read_text())["machines"]
    assert " | cpu | torch " in key
    assert key.endswith(" threads")
    monkeypatch.setattr(calibration, "processor_name", lambda: "another")
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert read_calibration("cpu") == Calibration()
    assert write_calibration("cpu", Calibration())
    assert list(json.loads(calibration_file().read_text())["machines"])[-1].endswith(
        f" | {os.cpu_count()} threads"
    )


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EA_CACHE", str(tmp_path / "file"))
    assert write_calibration("cpu", Calibration()) is False
    assert read_calibration("cpu") == Calibration()
    monkeypatch.setenv("EA_CACHE", str(tmp_path / "deep" / "er"))
    assert write_calibration("cpu", Calibration(3, RATES)) is True
    assert calibration_file() == tmp_path / "deep" / "er" / "plans.json"
    assert read_calibration("cpu").program == 3
    calibration_file().write_text("[" * 100_000)
    assert read_calibration("cpu") == Calibration()
