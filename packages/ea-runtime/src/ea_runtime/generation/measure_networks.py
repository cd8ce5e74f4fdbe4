"""Rates of work as the networks themselves reach them, for plans (measure_machine.py).

A network's time is the sum of its work by kind over their rates. Linear layers and attention are measured as single
operations; what lies between them in the denoiser ("calls", "moved") and the VAE's convolutions follow from runs of the
bundled model and of a wider VAE with random weights: each run gives the one rate that is still unknown in it. A run's
time is the median of three, since a user's run is as often disturbed.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ea_runtime.generation.forecasts import forecast_request
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.resolve import resolve
from ea_runtime.models.memory.meter import Meter
from ea_runtime.models.memory.vae import walk_decode
from ea_runtime.planning.calibration import Calibration, read_calibration
from ea_runtime.planning.forecast import Forecast

#: the first picture: smallest, so that a phase's time is mostly what it takes once
_FIRST: Mapping[str, Any] = {"num_frames": 1, "num_inference_steps": 2}
_MIDDLE: Mapping[str, Any] = {"num_frames": 18, "num_inference_steps": 2, "height": 128, "width": 128}
#: a VAE whose layers run in Winograd's form; 9 frames of 64x64, and a picture of 128x128, which transforms more
_WIDE = {"block_out_channels": [64, 128, 256, 256], "layers_per_block": 1, "norm_num_groups": 32}
_CHUNK, _PICTURE = (3, 8, 8), (1, 16, 16)
#: FLOPs of products that take as long as a byte of transforms; measured (AVX-512: 67 GFLOP/s, 2.2 GB/s)
_TRANSFORM = 30.0
#: a rate is at most this many times that of the single operation, and at least its inverse
_RANGE = 10.0


def first_picture(pipe: Any) -> dict[str, float]:
    """Seconds by phase of the first picture in this process."""
    return dict(pipe("a circle", seed=0, **_FIRST).timings)


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


def rates(pipe: Any, device: str, single: Mapping[str, float]) -> dict[str, float]:
    """All rates. pipe: of the bundled model. single: those of single operations, which bound what is found here."""
    found = dict(single)
    small, middle = _forecast(device, _FIRST), _forecast(device, _MIDDLE)
    timings = [_usual(pipe, _FIRST), _usual(pipe, _MIDDLE)]
    _solve(found, single, "calls", _work(small, "denoising"), timings[0]["denoising"])
    _solve(found, single, "moved", _work(middle, "denoising"), timings[1]["denoising"])
    _solve(found, single, "convolution", _work(middle, "decoding"), timings[1]["decoding"])
    if device == "cpu":
        counted, seconds = _wide_runs(type(pipe.vae))
        work = {name: float(amount) for name, amount in counted.items()}
        work["winograd"] += _TRANSFORM * work.pop("transformed")
        _solve(found, single, "winograd", work, seconds)
        found["transformed"] = found["winograd"] / _TRANSFORM
        # once more, since a few of its layers are in that form too
        _solve(found, single, "convolution", _work(middle, "decoding"), timings[1]["decoding"])
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


def _usual(pipe: Any, settings: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by phase, the medians of three runs."""
    runs = [pipe("a circle", seed=0, **settings).timings for _ in range(3)]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _forecast(device: str, settings: Mapping[str, Any]) -> Forecast:
    resolved = resolve(ModelRequest(prompt="a circle", model="tiny", device=device, **settings))
    return forecast_request(resolved.request, resolved.folder, kind=None)


def _work(forecast: Forecast, phase: str) -> Mapping[str, float]:
    return next(one.work for one in forecast.phases if one.name == phase)


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
            seconds += statistics.median(_timed(partial(vae.decode, latents)) for _ in range(3))
    return work, seconds


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
