"""This machine measured for plans, in about half a minute and in separate processes.

Rates of single operations, rates at which the networks run (measure_networks.py), what the first video of a process
takes once, and the program's own memory.

`python -m ea_runtime.generation.measure_machine DEVICE --first` prints seconds of the first picture and of short
videos, and how fast memory is touched, as JSON; with that in place of `--first` it prints all figures. Of what a
process takes once the shorter time counts, since the first process reads its libraries from the disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.planning.calibration import PROGRAM_BYTES, Calibration, write_calibration

#: seconds that each rate is measured
_SECONDS = 0.3
#: bytes of a block that is touched once, and how many blocks; those that take less than this share of the usual time
#: were ready
_TOUCHED, _TOUCHES, _FAST = 32 << 20, 16, 0.9
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
    from ea_runtime.generation.pipeline import VideoPipeline
    from ea_runtime.machine.memory import peak_rss

    program, first = PROGRAM_BYTES, {}
    started = time.perf_counter()
    try:
        pipe = VideoPipeline.from_pretrained("tiny", device=device)
    except MissingPackageError:
        pipe = None  # then no model can run: rates of single operations will do
    else:
        loading = imports + time.perf_counter() - started
        first = {"loading": loading} | networks.first_picture(pipe)
        if device == "cpu":
            program = peak_rss() - networks.bytes_of_networks(device)
    if which == "--first":
        videos = None if pipe is None else networks.short_videos(pipe, device)
        return {"first": first, "videos": videos, "touched": _touched() if device == "cpu" else None}
    earlier = json.loads(which)
    first = {name: min(seconds, earlier["first"].get(name, seconds)) for name, seconds in first.items()}
    with torch.inference_mode():
        layer = torch.nn.Linear if pipe is None else networks.linear_class(pipe)
        rates = {"imports": imports} | _rates(device, layer)
    ready = 0
    if device == "cpu":
        touched, ready = earlier["touched"]
        rates |= _touching_rate(touched, rates.get("mapped"))
    rates["disk"] = _disk_rate()
    if pipe is not None:
        rates = networks.rates(pipe, device, rates, earlier["videos"])
    del tokenizer
    starts = networks.starts(device, rates, first)
    return {"program_bytes": program, "ready_bytes": ready, "rates": rates, "starts": starts}


def _rates(device: str, layer: Any) -> dict[str, float]:
    """Rates by kind of work, of one operation each. layer: the class of a denoiser's linear layers."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from ea_runtime.machine.device import choose_device, choose_dtype

    where: dict[str, Any] = {"device": choose_device(device)}
    where["dtype"] = choose_dtype(where["device"])
    scale = 1 if device == "cpu" else 8
    image, weight = torch.randn(1, 128, 5, 16 * scale, 16, **where), torch.randn(128, 128, 3, 3, 3, **where)
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

    def convolve(frames: Any) -> Any:
        """As the VAE: by oneDNN itself where it can."""
        if device == "cpu" and torch.backends.mkldnn.is_available():
            return torch.mkldnn_convolution(frames, weight, None, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1)
        return F.conv3d(frames, weight, None, 1, 1)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    positions = image.shape[2] * image.shape[3] * image.shape[4]
    works: dict[str, tuple[Callable[[], Any], float]] = {
        "convolution": (partial(convolve, image), 2.0 * positions * 128 * 128 * 27),
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
    few = image[..., :4, :4].contiguous()
    laid = _seconds(partial(convolve, few), wait) - seconds["convolution"] * few.numel() / image.numel()
    if laid > 0:
        rates["filters"] = weight.numel() * weight.element_size() / laid
    rates |= _linear_rates(layer, scale, where, wait)
    return rates | {"winograd": rates["convolution"], "wide": rates["convolution"]}


def _linear_rates(
    layer: Any, scale: int, where: dict[str, Any], wait: Callable[[], None]
) -> dict[str, float]:
    """FLOP/s of linear layers, and bytes of their weights a second: from few rows and from many."""
    import torch

    layers = [layer(768, out, **where) for out in (768, 3072)]
    elements = sum(one.weight.numel() for one in layers)
    rows, spent = (64, 1536 * scale), []
    for count in rows:
        x = torch.randn(count, 768, **where)
        spent.append(sum(_seconds(partial(one, x), wait) for one in layers))
    a_row = (spent[1] - spent[0]) / (rows[1] - rows[0])
    weights = spent[0] - rows[0] * a_row
    if min(a_row, weights) <= 0:  # no weights could be seen
        return {"linear": 2 * rows[1] * elements / spent[1]}
    return {"linear": 2 * elements / a_row, "weights": elements * layers[0].weight.element_size() / weights}


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
    usual = sorted(spent)[len(spent) // 2]
    ready = sum(1 - one / usual for one in takewhile(lambda one: one < _FAST * usual, spent))
    return _TOUCHED / usual, int(ready * _TOUCHED)


def _touching_rate(touched: float, mapped: float | None) -> dict[str, float]:
    """The rate of touching memory, without what every mapping takes; nothing if it takes no more."""
    seconds = 1 / touched - (1 / mapped if mapped else 0.0)
    return {"touched": 1 / seconds} if seconds > 0 else {}


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
