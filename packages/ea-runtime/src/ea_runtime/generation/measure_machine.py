"""This machine measured for plans, in about 15 seconds and in two separate processes.

Rates of single operations (measure_operations.py), rates at which the networks run (measure_networks.py), what the
first video of a process takes once, and the program's own memory. Operations take turns, and so do runs of networks, so
that a disturbance of a second hits each of them once at most.

`python -m ea_runtime.generation.measure_machine DEVICE --first` prints seconds of the first picture and how fast memory
is touched, as JSON, and leaves the libraries in the system's cache; with that in place of `--first` it prints all
figures.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.planning.calibration import PROGRAM_BYTES, Calibration, write_calibration

#: bytes of a block that is touched once, and how many blocks; those that take less than this share of the usual time
#: were ready
_TOUCHED, _TOUCHES, _FAST = 32 << 20, 16, 0.9
#: bytes of a file that are read to measure reading
_READ = 256 << 20
#: times that each operation and network is timed
_ROUNDS = 3


def calibrate(device: str) -> Calibration:
    """Measures this machine and remembers it for `device`; runs so far are forgotten, since they were compared with
    other figures. Raises UserError if it cannot be measured."""
    first = _in_a_process(device, "--first")
    found = _in_a_process(device, json.dumps(first))
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


def _in_a_process(device: str, which: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "ea_runtime.generation.measure_machine", device, which]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError, TypeError) as error:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"`--calibrate` could not measure {device}: {last[:200]}") from error


def _measure(device: str, which: str) -> dict[str, Any]:
    """which: "--first", or what it printed in an earlier process."""
    from ea_runtime.machine.allocator import tune_allocator
    from ea_runtime.machine.light_imports import import_diffusers, without_collecting

    tune_allocator()
    started = time.perf_counter()
    with without_collecting():
        import torch

        import_diffusers()
        import transformers

        tokenizer = transformers.PreTrainedTokenizerFast  # loaded when it is asked for
    imports = time.perf_counter() - started

    from ea_runtime.errors import MissingPackageError
    from ea_runtime.generation import measure_networks as networks
    from ea_runtime.generation.measure_operations import Operations
    from ea_runtime.generation.pipeline import VideoPipeline
    from ea_runtime.machine.memory import peak_rss

    is_cpu, is_first = device == "cpu", which == "--first"
    started = time.perf_counter()
    try:
        pipe = VideoPipeline.from_pretrained("tiny", device=device)
    except MissingPackageError:
        pipe = None  # then no model can run: rates of single operations will do
    loading = imports + time.perf_counter() - started
    touched = _touched() if is_cpu and is_first else None  # where a run begins to take memory
    first = {} if pipe is None else {"loading": loading} | networks.first_picture(pipe)
    if is_first:
        if is_cpu:
            networks.open_file()
        return {"first": first, "touched": touched}
    earlier, program = json.loads(which), PROGRAM_BYTES
    if is_cpu and pipe is not None:
        program = peak_rss() - networks.bytes_of_networks(device)
    first = {name: min(seconds, earlier["first"].get(name, seconds)) for name, seconds in first.items()}
    found = {"imports": imports, "disk": _disk_rate()}
    if is_cpu and pipe is not None:
        found["writers"] = 1 / networks.opening_seconds(pipe)
    operations = Operations(device, torch.nn.Linear if pipe is None else networks.linear_class(pipe))
    found |= operations.rates(_seconds(operations.timers, min))
    ready = 0
    if is_cpu:
        rate, ready = earlier["touched"]
        found |= _touching_rate(rate, found.get("mapped"))
    if pipe is not None:
        found = networks.rates(device, found, _seconds(networks.runs(pipe, device), statistics.median))
    del tokenizer
    starts = networks.starts(device, found, first)
    return {"program_bytes": program, "ready_bytes": ready, "rates": found, "starts": starts}


def _seconds(
    timers: Mapping[str, Callable[[], float]], usual: Callable[[list[float]], float]
) -> dict[str, float]:
    """The usual time of each, of a few rounds in which all are timed."""
    rounds = [{name: timer() for name, timer in timers.items()} for _ in range(_ROUNDS)]
    return {name: usual([one[name] for one in rounds]) for name in timers}


def _touched() -> tuple[float, int]:
    """Bytes a second of memory that this process has not had before, the first time that it is written, and the bytes
    before that, which were ready.

    A virtual machine's host takes back what is free for some seconds; then this takes ten times as long as the next
    time.
    """
    import torch

    held, spent = [], []
    for _ in range(_TOUCHES):
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
    print(json.dumps(_measure(sys.argv[1], sys.argv[2])))  # noqa: T201
