"""Facts of this machine, remembered: the program's own memory, rates of arithmetic, and how far plans were off."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ea_runtime.files.atomic import write_atomic
from ea_runtime.machine.processor import processor_name

#: of the file's format
VERSION = 5
#: memory of Python with torch, diffusers and transformers once networks have run; measured (benchmarks/test_plan.py)
PROGRAM_BYTES = 640_000_000
#: runs that are remembered
_RUNS = 50
#: a run says something about the program's memory if the networks take less than this times it
_SMALL = 0.5


@dataclass(frozen=True, slots=True)
class Calibration:
    """This machine with one device.

    program_bytes: of the program itself. rates: FLOP/s by kind of work, "weights", "filters", "moved", "swept",
    "transformed", "mapped", "touched" and "disk" bytes a second, "calls", "mappings", "reads" and "writers" a second,
    "imports" seconds; empty until measured. runs: what finished runs were predicted to take, and took. starts: seconds
    that a phase takes once, before its first arithmetic. ready_bytes: of memory that a program finds before it has to
    touch more.
    """

    program_bytes: int = PROGRAM_BYTES
    rates: Mapping[str, float] = field(default_factory=dict)
    runs: tuple[Mapping[str, Any], ...] = ()
    starts: Mapping[str, float] = field(default_factory=dict)
    ready_bytes: int = 0

    def seconds(self, phase: str, work: Mapping[str, float], disk: int = 0) -> float | None:
        """Seconds of a phase, corrected by the runs so far; None without rates."""
        if not self.rates:
            return None
        own = sum(amount / self.rates[kind] for kind, amount in work.items() if kind in self.rates)
        own += disk / self.rates["disk"] + (self.rates["imports"] if phase == "loading" else 0)
        own += self.starts.get(phase, 0.0)
        return own * self.factor(phase)

    def factor(self, phase: str) -> float:
        """The time that a phase took, over what was predicted without this factor: the median of the runs."""
        found = [one["factors"][phase] for one in self.runs if phase in one.get("factors", {})]
        return statistics.median(found) if found else 1.0

    def with_program(self, size: int) -> Calibration:
        """The same, where the program itself is known to take `size` bytes."""
        runs = tuple({k: v for k, v in run.items() if k != "program"} for run in self.runs)
        return replace(self, program_bytes=size, runs=runs)

    @property
    def program(self) -> int:
        """Bytes of the program itself, by the runs if there were some."""
        found = [one["program"] for one in self.runs if "program" in one]
        return int(statistics.median(found)) if found else self.program_bytes


def learned(
    before: Calibration,
    program: int,
    predicted: int,
    measured: int | None,
    phases: Mapping[str, tuple[float, float]],
) -> Calibration:
    """The calibration after one more run.

    program: bytes that the plan counted for the program itself. predicted, measured: peaks; None: not measured.
    phases: name -> seconds predicted, and taken.
    """
    run: dict[str, Any] = {
        "predicted": predicted,
        "measured": measured,
        "seconds": {name: list(pair) for name, pair in phases.items()},
    }
    run["factors"] = {
        name: taken / planned * before.factor(name)
        for name, (planned, taken) in phases.items()
        if planned > 0
    }
    if measured is not None and predicted - program < _SMALL * program:
        run["program"] = max(measured - (predicted - program), program // 2)
    return replace(before, runs=(*before.runs, run)[-_RUNS:])


def read_calibration(device: str) -> Calibration:
    """The figures remembered for this machine and a device; the defaults if there are none or they are damaged."""
    found: Any = _stored().get(_key(device))
    try:
        rates = {str(name): float(value) for name, value in found["rates"].items()}
        if any(not value > 0 for value in rates.values()):
            raise ValueError
        starts = {str(name): float(value) for name, value in found["starts"].items()}
        if any(not value >= 0 for value in starts.values()):
            raise ValueError
        runs = tuple(run for run in found["runs"] if _is_sound(run))
        ready = int(found["ready_bytes"])
        if ready < 0:
            raise ValueError
        return Calibration(int(found["program_bytes"]), rates, runs, starts, ready)
    except (TypeError, KeyError, ValueError, AttributeError):
        return Calibration()


def write_calibration(device: str, calibration: Calibration) -> bool:
    """Remembers it; False if the cache cannot be written."""
    table = _stored()
    table[_key(device)] = asdict(calibration)
    try:
        write_atomic(calibration_file(), json.dumps({"version": VERSION, "machines": table}, indent=1))
    except OSError:
        return False
    return True


def calibration_file() -> Path:
    """`plans.json` in $EA_CACHE, or in the user's cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("EA_CACHE") or user_cache_path("ea", appauthor=False)) / "plans.json"


def _stored() -> dict[str, Any]:
    try:
        found = json.loads(calibration_file().read_text(encoding="utf-8"))
        machines = found["machines"] if found["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return machines if isinstance(machines, dict) else {}


def _is_sound(run: Any) -> bool:
    factors = run.get("factors") if isinstance(run, dict) else None
    numbers = [*factors.values(), run.get("program", 1)] if isinstance(factors, dict) else [None]
    return all(isinstance(one, int | float) and one > 0 for one in numbers)


def _key(device: str) -> str:
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "none"
    threads = os.environ.get("OMP_NUM_THREADS") or os.cpu_count()
    return f"{platform.system()} {platform.machine()} {processor_name()} | {device} | torch {torch} | {threads} threads"
