"""Rates of work as the networks themselves reach them, for plans (measure_machine.py).

A network's time is the sum of its work by kind over their rates. Linear layers and attention are measured as single
operations; what lies between them in the denoiser ("calls", "moved") and the VAE's convolutions follow from runs of the
bundled model and of a wider VAE with random weights: each run gives the one rate that is still unknown in it.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ea_runtime.generation.forecasts import forecast_request
from ea_runtime.generation.making import ModelHash
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.resolve import resolve
from ea_runtime.models.memory.meter import Meter
from ea_runtime.models.memory.vae import walk_decode
from ea_runtime.planning.calibration import Calibration, read_calibration
from ea_runtime.planning.forecast import Forecast
from ea_runtime.video.output import plan_output

#: the first picture: smallest, so that a phase's time is mostly what it takes once
_FIRST: dict[str, Any] = {"num_frames": 1, "num_inference_steps": 2}
#: a chunk of a video
_CHUNK: dict[str, Any] = {"num_frames": 9, "height": 128, "width": 128}
#: pictures denoised together, so many that their tensors are larger than the caches, as those of a video are
_TOGETHER: dict[str, Any] = {"num_frames": 1, "num_inference_steps": 1, "height": 256, "width": 256}
_PROMPT, _BATCH = "a circle", 8
_WAITING: dict[str, Any] = _FIRST | {"offload": "group"}
#: a VAE whose layers run in Winograd's form, and its latents of a picture of 128x256, which take a sixth of the time of
#: 9 frames of 128x128, at the same rate
_WIDE = {"block_out_channels": [64, 128, 256, 256], "layers_per_block": 1, "norm_num_groups": 32}
_WIDE_LATENTS = 1, 32, 16
#: FLOPs of products that take as long as a byte of transforms; measured (AVX-512: 61 GFLOP/s, 4 GB/s)
_TRANSFORM = 15.0
#: bytes that a run takes at most
_MEMORY = 256 << 20
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


def opening_seconds() -> float:
    """Seconds that a video of one frame takes, the first time in a process: codecs are imported."""
    import numpy as np

    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        plan_output(Path(folder) / "a.mp4").writer(12, 1) as write,
    ):
        write(np.zeros((64, 64, 3), np.uint8))
    return time.perf_counter() - started


def bytes_of_networks(device: str) -> int:
    """Bytes that a plan counts for the first picture, without the program."""
    return _forecast(device, _FIRST).peak - read_calibration(device).program


def starts(device: str, rates: Mapping[str, float], first: Mapping[str, float]) -> dict[str, float]:
    """Seconds that each phase takes once: the first picture's time without its work.

    Nothing counts for touching memory: blocks as small as its tensors are among those that the system has.
    """
    calibration, forecast = Calibration(rates=rates), _forecast(device, _FIRST)
    work = {phase.name: _work(forecast, phase.name) for phase in forecast.phases}
    return {
        name: max(seconds - (calibration.seconds(name, work[name]) or 0.0), 0.0)
        for name, seconds in first.items()
        if name in work
    }


def runs(pipe: Any, device: str) -> dict[str, Callable[[], float]]:
    """Functions that run a network and return the seconds it took, keyed by the kind of work whose rate follows.

    pipe: of the bundled model.
    """
    pictures = _TOGETHER | {"output": "latents", "batch_size": _BATCH}
    found: dict[str, Callable[[], float]] = {
        "calls": partial(_denoising, pipe, _PROMPT, _FIRST),
        "moved": partial(_denoising, pipe, [_PROMPT] * _BATCH, pictures),
        "convolution": partial(_decoding, pipe, _CHUNK),
    }
    if device == "cpu":
        waiting = type(pipe).from_pretrained("tiny", device=device, offload="group")
        found["reads"] = partial(_denoising, waiting, _PROMPT, _FIRST)
        found["winograd"] = _wide_run(type(pipe.vae))
        return {name: partial(_with_memory, run) for name, run in found.items()}
    return found


def works_of_runs(device: str) -> dict[str, Mapping[str, float]]:
    """The work of each of `runs`."""
    found = {
        "calls": _work(_forecast(device, _FIRST), "denoising"),
        "moved": _work(_forecast(device, _TOGETHER, _BATCH), "denoising"),
        "convolution": _work(_forecast(device, _CHUNK), "decoding"),
    }
    if device == "cpu":
        found |= {"reads": _work(_forecast(device, _WAITING), "denoising"), "winograd": _wide_work()}
    return found


def rates(device: str, single: Mapping[str, float], seconds: Mapping[str, float]) -> dict[str, float]:
    """All rates. single: those of single operations, which bound what is found here. seconds: of `runs`."""
    found, works = dict(single), works_of_runs(device)
    bounds = {"reads": _READS, **single}
    # convolutions once more, since a few layers of the bundled model are in Winograd's form too
    for kind in [*works, "convolution"]:
        _solve(found, bounds, kind, works[kind], seconds[kind])
        if kind == "winograd":
            found["transformed"] = found["winograd"] / _TRANSFORM
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


def _with_memory(run: Callable[[], float]) -> float:
    """Seconds that `run` takes once its memory has been touched, which has a separate rate."""
    import torch

    torch.empty(_MEMORY, dtype=torch.uint8).fill_(1)
    return run()


def _denoising(pipe: Any, prompt: Any, settings: Mapping[str, Any]) -> float:
    """Seconds of denoising in a run."""
    return pipe(prompt, seed=0, **settings).timings["denoising"]


def _decoding(pipe: Any, settings: Mapping[str, Any]) -> float:
    """Seconds of decoding unit noise."""
    import torch

    shape = pipe.geometry.latent_shape(1, **settings)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return _timed(lambda: deque(pipe.iter_frames(latents), 0))


def _forecast(device: str, settings: Mapping[str, Any], batch: int = 1) -> Forecast:
    resolved = resolve(ModelRequest(prompt=_PROMPT, model="tiny", device=device, **settings))
    return forecast_request(resolved.request, resolved.folder, kind=None, batch=batch)


def _work(forecast: Forecast, phase: str) -> Mapping[str, float]:
    """The work of a run that is not the first of its process, and writes no file."""
    return {name: amount for name, amount in forecast.phase(phase).work.items() if name not in _ONCE}


def _wide_work() -> dict[str, float]:
    """The work of `_wide_run`, of which transforms count as products of as many seconds."""
    meter = Meter(4, has_scratch=True, moves="swept")
    walk_decode(meter, _WIDE, *_WIDE_LATENTS)
    found = {name: float(amount) for name, amount in meter.work.items()}
    found["winograd"] += _TRANSFORM * found.pop("transformed")
    return found


def _wide_run(vae_class: Any) -> Callable[[], float]:
    """A picture decoded by the wider VAE, in float32 on the CPU."""
    import torch

    vae = vae_class.from_config(_WIDE).eval()
    latents = torch.randn(1, 4, *_WIDE_LATENTS, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def run() -> float:
        return _timed(partial(vae.decode, latents))

    return run


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
