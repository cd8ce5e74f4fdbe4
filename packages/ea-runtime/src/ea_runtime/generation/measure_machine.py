"""This machine measured for plans, in about 20 seconds and in a separate process.

Rates of single operations, rates at which the networks run (measure_networks.py), what the first video of a process
takes once, and the program's own memory.

`python -m ea_runtime.generation.measure_machine DEVICE --first` prints the first picture's seconds by phase as JSON;
with that in place of `--first` it prints all figures. Of the two first pictures the shorter phases count, since a
process that is the first of its kind reads its libraries from the disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.planning.calibration import PROGRAM_BYTES, Calibration, write_calibration

#: seconds that each rate is measured
_SECONDS = 0.3
#: bytes of a file that are read to measure reading
_READ = 256 << 20
#: sizes of two blocks, in elements of float32, that are mapped anew
_BLOCKS = 2 << 20, 16 << 20


def calibrate(device: str) -> Calibration:
    """Measures this machine and remembers it for `device`; runs so far are forgotten, since they were compared with
    other figures. Raises UserError if it cannot be measured."""
    first = _in_a_process(device, "--first")
    found = _in_a_process(device, json.dumps(first))
    try:
        calibration = Calibration(int(found["program_bytes"]), found["rates"], starts=found["starts"])
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
    from ea_runtime.generation.pipeline import VideoPipeline
    from ea_runtime.machine.memory import peak_rss

    program, first = PROGRAM_BYTES, {}
    try:
        pipe = VideoPipeline.from_pretrained("tiny", device=device)
    except MissingPackageError:
        pipe = None  # then no model can run: rates of single operations will do
    else:
        first = networks.first_picture(pipe)
        if device == "cpu":
            program = peak_rss() - networks.bytes_of_networks(device)
    if which == "--first":
        return first
    earlier = json.loads(which)
    first = {name: min(seconds, earlier.get(name, seconds)) for name, seconds in first.items()}
    with torch.inference_mode():
        rates = {"imports": imports} | _rates(device)
    rates["disk"] = _disk_rate()
    if pipe is not None:
        rates = networks.rates(pipe, device, rates)
    del tokenizer
    return {"program_bytes": program, "rates": rates, "starts": networks.starts(device, rates, first)}


def _rates(device: str) -> dict[str, float]:
    """Rates by kind of work, of one operation each."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from ea_runtime.machine.device import choose_device, choose_dtype

    where: dict[str, Any] = {"device": choose_device(device)}
    where["dtype"] = choose_dtype(where["device"])
    scale = 1 if device == "cpu" else 8
    x, linear = torch.randn(1536 * scale, 768, **where), nn.Linear(768, 3072, **where)
    image, weight = torch.randn(1, 128, 5, 32 * scale, 32, **where), torch.randn(128, 128, 3, 3, 3, **where)
    q = torch.randn(2 * scale, 12, 512, 64, **where)
    large, small, norm = (
        torch.randn(2, 8 << 20, **where),
        torch.randn(8, 64, **where),
        nn.Linear(64, 64, **where),
    )
    frames = torch.randn(1, 32, 9, 128, 128 * scale, **where).contiguous(memory_format=torch.channels_last_3d)

    def sweep() -> Any:
        """As the VAE's residual blocks, which count 8 passes."""
        return F.silu(F.group_norm(frames, 8), inplace=True).add_(frames)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    positions = image.shape[2] * image.shape[3] * image.shape[4]
    works: dict[str, tuple[Callable[[], Any], float]] = {
        "linear": (lambda: linear(x), 2.0 * len(x) * 768 * 3072),
        "convolution": (lambda: F.conv3d(image, weight, None, 1, 1), 2.0 * positions * 128 * 128 * 27),
        "attention": (
            lambda: F.scaled_dot_product_attention(q, q, q),
            4.0 * q.shape[0] * 12 * 512 * 512 * 64,
        ),
        "moved": (
            lambda: torch.add(large[0], 1, out=large[1]),
            2.0 * large[0].numel() * large.element_size(),
        ),
        "swept": (sweep, 8.0 * frames.numel() * frames.element_size()),
        "calls": (lambda: norm(small), 0.5),  # every tensor of a walk is about two calls
    }
    seconds = {name: _seconds(work, wait) for name, (work, _) in works.items()}
    mappings = _mapping_rates() if device == "cpu" else {}
    if mappings:  # a sweep makes one large tensor
        size = frames.numel() * frames.element_size()
        spent = size / mappings["mapped"] + 1 / mappings["mappings"]
        seconds["swept"] -= min(spent, seconds["swept"] / 2)
    rates = {name: amount / seconds[name] for name, (_, amount) in works.items()} | mappings
    return rates | {"winograd": rates["convolution"]}


def _mapping_rates() -> dict[str, float]:
    """Bytes and blocks a second that the system maps, from a small and a large one; nothing if that takes no time."""
    import torch

    spent = []
    for count in _BLOCKS:
        old = torch.zeros(count)
        new = _seconds(lambda count=count: torch.empty(count).fill_(1.0), lambda: None)  # type: ignore[misc]
        spent.append(new - _seconds(lambda old=old: old.fill_(1.0), lambda: None))  # type: ignore[misc]
    size = 4 * (_BLOCKS[1] - _BLOCKS[0])
    a_byte = (spent[1] - spent[0]) / size
    a_block = spent[0] - 4 * _BLOCKS[0] * a_byte
    return {"mapped": 1 / a_byte, "mappings": 1 / a_block} if min(a_byte, a_block) > 0 else {}


def _seconds(work: Callable[[], Any], wait: Callable[[], None]) -> float:
    """The median time of one call, of as many as fit."""
    times = []
    work()
    wait()
    stop = time.perf_counter() + _SECONDS
    while time.perf_counter() < stop or len(times) < 3:
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def _disk_rate() -> float:
    """Bytes a second of reading a large file that is there already: torch's own library."""
    import torch

    files = sorted(
        Path(torch.__file__).parent.rglob("*"), key=lambda path: -path.stat().st_size if path.is_file() else 0
    )
    buffer, done, started = bytearray(1 << 20), 0, time.perf_counter()
    with files[0].open("rb", buffering=0) as file:
        while done < _READ and (count := file.readinto(buffer)):
            done += count
    return max(done, 1) / max(time.perf_counter() - started, 1e-6)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2])))  # noqa: T201
