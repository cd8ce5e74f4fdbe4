"""Rates of work as the networks themselves reach them, for plans (measure_machine.py).

A network's time is the sum of its work by kind over their rates. Linear layers and attention are measured as single
operations; what lies between them in the denoiser ("calls", "moved") and the VAE's convolutions follow from runs of the
bundled model and of a wider VAE with random weights: each run gives the one rate that is still unknown in it. A run's
time is the median of three or six, since a user's run is as often disturbed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ea_runtime.generation.decoding import frames_of
from ea_runtime.generation.forecasts import forecast_request
from ea_runtime.generation.making import ModelHash
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.resolve import resolve
from ea_runtime.models.memory.meter import Meter
from ea_runtime.models.memory.vae import walk_decode
from ea_runtime.planning.calibration import Calibration, read_calibration
from ea_runtime.planning.forecast import Forecast
from ea_runtime.video.output import plan_output
from ea_runtime.video.overlap import overlapped

#: the first picture: smallest, so that a phase's time is mostly what it takes once
_FIRST: dict[str, Any] = {"num_frames": 1, "num_inference_steps": 2}
_MIDDLE: dict[str, Any] = {"num_frames": 18, "num_inference_steps": 2, "height": 128, "width": 128}
#: pictures denoised together, so many that their tensors are larger than the caches, as those of a video are
_TOGETHER: dict[str, Any] = {"num_frames": 1, "num_inference_steps": 2, "height": 256, "width": 256}
_PROMPT, _BATCH = "a circle", 8
#: a VAE whose layers run in Winograd's form; 9 frames of 128x128, and a picture of 256x256, which transforms more
_WIDE = {"block_out_channels": [64, 128, 256, 256], "layers_per_block": 1, "norm_num_groups": 32}
_CHUNK, _PICTURE = (3, 16, 16), (1, 32, 32)
#: FLOPs of products that take as long as a byte of transforms; measured (AVX-512: 61 GFLOP/s, 4 GB/s)
_TRANSFORM = 15.0
#: seconds that opening a video's file takes at least
_QUICK = 1e-3
#: groups of weights that are read a second, about
_READS = 2000.0
#: work of a process's first run
_ONCE = "touched", "writers"
#: a rate is at most this many times that of the single operation, and at least its inverse
_RANGE = 10.0


def first_picture(pipe: Any) -> dict[str, float]:
    """Seconds by phase of the first picture in this process."""
    hashed = ModelHash("tiny")  # as `ea generate` does meanwhile
    timings = dict(pipe(_PROMPT, seed=0, **_FIRST).timings)
    hashed()
    return timings


def linear_class(pipe: Any) -> Any:
    """The class of a denoiser's linear layers."""
    from torch import nn

    return next(type(one) for one in pipe.denoiser.modules() if isinstance(one, nn.Linear))


def bytes_of_networks(device: str) -> int:
    """Bytes that a plan counts for the first picture, without the program."""
    return _forecast(device, _FIRST).peak - read_calibration(device).program


def starts(device: str, rates: Mapping[str, float], first: Mapping[str, float]) -> dict[str, float]:
    """Seconds that each phase takes once: the first picture's time without its work."""
    calibration = Calibration(rates=rates)
    work = {phase.name: phase.work for phase in _forecast(device, _FIRST).phases}
    return {
        name: max(seconds - (calibration.seconds(name, work[name]) or 0.0), 0.0)
        for name, seconds in first.items()
        if name in work
    }


def rates(
    pipe: Any, device: str, single: Mapping[str, float], earlier: Mapping[str, Any]
) -> dict[str, float]:
    """All rates. pipe: of the bundled model. single: those of single operations, which bound what is found here.
    earlier: `short_videos` of another process.
    """
    found = dict(single)
    small, middle = _forecast(device, _FIRST), _forecast(device, _MIDDLE)
    together = _forecast(device, _TOGETHER, _BATCH)
    videos = _of_two(earlier, short_videos(pipe, device))
    decoding = _usual(videos["middle"])["decoding"]
    pictures = _runs(pipe, _TOGETHER | {"output": "latents", "batch_size": _BATCH}, [_PROMPT] * _BATCH)
    _solve(found, single, "calls", _work(small, "denoising"), _usual(_runs(pipe, _FIRST))["denoising"])
    _solve(found, single, "moved", _work(together, "denoising"), _usual(pictures)["denoising"])
    _solve(found, single, "convolution", _work(middle, "decoding"), decoding)
    if device == "cpu":
        found["writers"] = 1 / videos["opening"]
        counted, seconds = _wide_runs(type(pipe.vae))
        work = {name: float(amount) for name, amount in counted.items()}
        work["winograd"] += _TRANSFORM * work.pop("transformed")
        _solve(found, single, "winograd", work, seconds)
        found["transformed"] = found["winograd"] / _TRANSFORM
        # once more, since a few of its layers are in that form too
        _solve(found, single, "convolution", _work(middle, "decoding"), decoding)
        waiting = type(pipe).from_pretrained("tiny", device=device, offload="group")
        asked = _forecast(device, _FIRST | {"offload": "group"})
        seconds = _usual(_runs(waiting, _FIRST))["denoising"]
        _solve(found, {"reads": _READS}, "reads", _work(asked, "denoising"), seconds)
    return found


def _solve(
    rates: dict[str, float],
    single: Mapping[str, float],
    kind: str,
    work: Mapping[str, float],
    seconds: float,
) -> None:
    """Sets the rate of `kind` so that `work` takes `seconds`."""
    others = sum(amount / rates[name] for name, amount in work.items() if name != kind and name in rates)
    slowest = single[kind] / _RANGE
    left = seconds - others
    rates[kind] = min(max(work[kind] / left, slowest), single[kind] * _RANGE) if left > 0 else single[kind]


def short_videos(pipe: Any, device: str) -> dict[str, Any]:
    """Seconds of short videos, once in a process. "middle": by phase, of three. "opening": on the CPU, those that
    decoding takes longer while the first file of the process is opened."""
    runs = _runs(pipe, _MIDDLE)
    return {"middle": runs, "opening": _opening_seconds(pipe) if device == "cpu" else None}


def _of_two(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The runs of both processes, and the shorter opening: the first process reads its libraries from the disk."""
    opening = None if one["opening"] is None else min(one["opening"], other["opening"])
    return {"middle": [*one["middle"], *other["middle"]], "opening": opening}


def _usual(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The medians of runs."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _runs(pipe: Any, settings: Mapping[str, Any], prompt: Any = _PROMPT) -> list[dict[str, float]]:
    """Seconds by phase of three runs."""
    return [dict(pipe(prompt, seed=0, **settings).timings) for _ in range(3)]


def _forecast(device: str, settings: Mapping[str, Any], batch: int = 1) -> Forecast:
    resolved = resolve(ModelRequest(prompt=_PROMPT, model="tiny", device=device, **settings))
    return forecast_request(resolved.request, resolved.folder, kind=None, batch=batch)


def _work(forecast: Forecast, phase: str) -> Mapping[str, float]:
    """The work of a run that is not the first of its process, and writes no file."""
    return {name: amount for name, amount in forecast.phase(phase).work.items() if name not in _ONCE}


def _opening_seconds(pipe: Any) -> float:
    """Seconds that decoding a video takes longer while its file is opened in another thread, which imports codecs."""
    made = pipe(_PROMPT, seed=0, output="latents", **_FIRST | {"num_frames": 18})
    alone = min(_timed(lambda: deque(frames_of(pipe, made), 0)) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        output = plan_output(Path(folder) / "a.mp4")
        with output.writer(12, 18) as write, overlapped(write) as hand_in:
            together = _timed(lambda: deque(map(hand_in, frames_of(pipe, made)), 0))
    return max(together - alone, _QUICK)


def _wide_runs(vae_class: Any) -> tuple[Counter[str], float]:
    """Work and seconds of a chunk and a picture decoded by the wider VAE, in float32 on the CPU."""
    import torch

    vae, work, seconds = vae_class.from_config(_WIDE).eval(), Counter[str](), 0.0
    for size in (_CHUNK, _PICTURE):
        meter = Meter(4, has_scratch=True, moves="swept")
        walk_decode(meter, _WIDE, *size)
        work += meter.work
        latents = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            seconds += min(_timed(partial(vae.decode, latents)) for _ in range(2))  # the first touches memory
    return work, seconds


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
