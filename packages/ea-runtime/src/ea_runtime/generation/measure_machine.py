"""This machine measured for plans, in about ten seconds and in two separate processes.

Rates of single operations (measure_operations.py), rates at which the networks run (measure_networks.py), what the
first video of a process takes once, and the program's own memory. Operations take turns, and so do runs of networks, so
that a disturbance of a second hits each of them once at most.

`python -m ea_runtime.generation.measure_machine DEVICE` prints all figures as JSON. Its child, a copy of it where the
system can make one, makes the first picture once more, and finds how fast memory is touched.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import takewhile
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.planning.calibration import PROGRAM_BYTES, Calibration, write_calibration

#: bytes of a block that is touched once, and blocks at most; those that take less than this share of the usual time
#: were ready
_TOUCHED, _TOUCHES, _FAST = 32 << 20, 16, 0.9
#: no more are touched after this many seconds if the last few took as long as each other
_ENOUGH, _LAST = 0.3, 6
#: bytes of a file that are read to measure reading
_READ = 256 << 20
#: how the child is started: as a copy, whose imports are done, where that is safe
_START = "fork" if sys.platform.startswith("linux") else "spawn"
#: times that each operation and network is timed at most; two will do if the longer one is at most this many times the
#: shorter one
_ROUNDS, _ALIKE = 3, 1.05


def calibrate(device: str) -> Calibration:
    """Measures this machine and remembers it for `device`; runs so far are forgotten, since they were compared with
    other figures. Raises UserError if it cannot be measured."""
    found = _in_a_process(device)
    try:
        calibration = Calibration(
            int(found["program_bytes"]),
            found["rates"],
            starts=found["starts"],
            ready_bytes=int(found["ready_bytes"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"`--calibrate` could not measure {device}: {error!r}") from error
    if not write_calibration(device, calibration):
        raise UserError(
            "`--calibrate` cannot write the user's cache; set EA_CACHE to a folder that can be written"
        )
    return calibration


def _in_a_process(device: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "ea_runtime.generation.measure_machine", device]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError, TypeError) as error:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"`--calibrate` could not measure {device}: {last[:200]}") from error


def _measure(device: str) -> dict[str, Any]:
    imports = _import()
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context(_START)) as pool:
            earlier = pool.submit(_first, device).result()
    except BrokenProcessPool as error:
        raise UserError("the process of the first picture ended, killed or out of memory") from error

    import torch

    from ea_runtime.generation import measure_networks as networks
    from ea_runtime.generation.measure_operations import Operations
    from ea_runtime.machine.memory import peak_rss

    is_cpu, program = device == "cpu", PROGRAM_BYTES
    pipe, first = _loaded(device)
    if pipe is not None:
        first |= networks.first_picture(pipe)
    if is_cpu and pipe is not None:
        program = peak_rss() - networks.bytes_of_networks(device)
    first = {name: min(seconds, earlier["first"].get(name, seconds)) for name, seconds in first.items()}
    first["loading"] += imports
    found = {"imports": imports, "disk": _disk_rate()}
    if is_cpu and pipe is not None:
        found["writers"] = 1 / min(networks.opening_seconds(), earlier["writer"])
    operations = Operations(device, torch.nn.Linear if pipe is None else networks.linear_class(pipe))
    found |= operations.rates(_seconds(operations.timers, min))
    ready = 0
    if is_cpu:
        rate, ready = earlier["touched"]
        found |= _touching_rate(rate, found.get("mapped"))
    if pipe is not None:
        found = networks.rates(device, found, _seconds(networks.runs(pipe, device), statistics.median))
    starts = networks.starts(device, found, first)
    return {"program_bytes": program, "ready_bytes": ready, "rates": found, "starts": starts}


def _import() -> float:
    """Seconds of processor time that a generation's imports take: reading them from a disk, as after a start of the
    machine, does not count.

    Looking for garbage among all that they made, which comes at any time after them, counts as a part of them.
    """
    from ea_runtime.machine.allocator import tune_allocator
    from ea_runtime.machine.light_imports import import_diffusers, without_collecting

    tune_allocator()
    started = time.process_time()
    with without_collecting():
        import_diffusers()
        from transformers import PreTrainedTokenizerFast  # noqa: F401

        from ea_runtime.generation.pipeline import VideoPipeline  # noqa: F401
    gc.collect()
    return time.process_time() - started


def _loaded(device: str) -> tuple[Any, dict[str, float]]:
    """The bundled model, and the seconds that loading it takes; None if no model can run."""
    from ea_runtime.errors import MissingPackageError
    from ea_runtime.generation.pipeline import VideoPipeline

    started = time.perf_counter()
    try:
        pipe = VideoPipeline.from_pretrained("tiny", device=device)
    except MissingPackageError:
        pipe = None  # rates of single operations will do
    return pipe, {"loading": time.perf_counter() - started}


def _first(device: str) -> dict[str, Any]:
    """Seconds of the first picture; on the CPU those of the first file too, and how fast memory is touched where a run
    begins to take it. Libraries are in the system's cache afterwards."""
    from ea_runtime.generation import measure_networks as networks

    _import()
    pipe, first = _loaded(device)
    touched = _touched() if device == "cpu" else None
    if pipe is not None:
        first |= networks.first_picture(pipe)
    writer = networks.opening_seconds() if device == "cpu" and pipe is not None else None
    return {"first": first, "touched": touched, "writer": writer}


def _seconds(
    timers: Mapping[str, Callable[[], float]], usual: Callable[[list[float]], float]
) -> dict[str, float]:
    """The usual time of each, of two that are alike or of three. All are timed in turns."""
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(_ROUNDS):
        for name, timer in timers.items():
            if not _are_alike(found[name]):
                found[name].append(timer())
    return {name: usual(times) for name, times in found.items()}


def _are_alike(times: list[float], ratio: float = _ALIKE) -> bool:
    return len(times) > 1 and max(times) <= ratio * min(times)


def _touched() -> tuple[float, int]:
    """Bytes a second of memory that this process has not had before, the first time that it is written, and the bytes
    before that, which were ready.

    A virtual machine's host takes back what is free for some seconds; then this takes ten times as long as the next
    time.
    """
    import torch

    held: list[torch.Tensor] = []
    spent: list[float] = []
    while len(held) < _TOUCHES and not (sum(spent) > _ENOUGH and _are_alike(spent[-_LAST:], 1 / _FAST)):
        started = time.perf_counter()
        held.append(torch.empty(_TOUCHED, dtype=torch.uint8).fill_(1))
        spent.append(time.perf_counter() - started)
    usual = sorted(spent)[len(spent) * 3 // 4]
    ready = sum(1 - one / usual for one in takewhile(lambda one: one < _FAST * usual, spent))
    return _TOUCHED / usual, int(ready * _TOUCHED)


def _touching_rate(touched: float, mapped: float | None) -> dict[str, float]:
    """The rate of touching memory, without what every mapping takes; nothing if it takes no more."""
    seconds = 1 / touched - (1 / mapped if mapped else 0.0)
    return {"touched": 1 / seconds} if seconds > 0 else {}


def _disk_rate() -> float:
    """Bytes a second of reading a large file that is there already: torch's own library."""
    import torch

    libraries = (path for path in (Path(torch.__file__).parent / "lib").iterdir() if path.is_file())
    largest = max(libraries, key=lambda path: path.stat().st_size)
    buffer, done, started = bytearray(1 << 20), 0, time.perf_counter()
    with largest.open("rb", buffering=0) as file:
        while done < _READ and (count := file.readinto(buffer)):
            done += count
    return max(done, 1) / max(time.perf_counter() - started, 1e-6)


if __name__ == "__main__":
    try:
        print(json.dumps(_measure(sys.argv[1])))  # noqa: T201
    except UserError as reason:
        sys.exit(str(reason))
