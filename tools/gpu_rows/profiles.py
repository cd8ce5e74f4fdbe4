"""Where the time of a step and of a chunk goes: the kernels that take most of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu_rows import step
from gpu_rows.bench import Bench

_SHOWN = 12


def run(bench: Bench, size: str) -> dict[str, Any]:
    """Milliseconds by kernel (on a CPU by operation) of one step and one chunk as they run by default."""
    _, one_step = step.make(bench, size)
    _, channels, _, height, width = bench.latent_shape(size)
    z = bench.noise(1, channels, 3, height, width)
    return {
        "step_ms": _kernels(bench, one_step),
        "chunk_ms": _kernels(bench, lambda: bench.vae().decode(z).sample),
    }


def _kernels(bench: Bench, work: Callable[[], Any]) -> dict[str, float]:
    kind = ProfilerActivity.CPU if bench.is_cpu else ProfilerActivity.CUDA
    with torch.inference_mode():
        work()
        bench.wait()
        with profile(activities=[kind]) as found:
            work()
            bench.wait()
    events: Any = found.key_averages()
    times: dict[str, float] = {}
    for event in events:
        name = " ".join(event.key.replace("|", "/").split())[:60]
        taken = event.self_cpu_time_total if bench.is_cpu else event.self_device_time_total
        times[name] = times.get(name, 0.0) + taken / 1e3
    most = sorted(times, key=lambda name: -times[name])[:_SHOWN]
    return {"all": round(sum(times.values()), 3), **{name: round(times[name], 3) for name in most}}
