"""The machine, and the rate at which it multiplies matrices."""

from __future__ import annotations

import os
import platform
import statistics
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gpu_rows.bench import Bench


def describe(bench: Bench) -> dict[str, Any]:
    """Settings that a figure depends on besides the code."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": None,
        "python": platform.python_version(),
    }
    for name in ("torch", "diffusers", "transformers", "peft", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if not bench.is_cpu:
        free, total = torch.cuda.mem_get_info()
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "gpu_bytes": total,
            # used by this process's context before any tensor, and by others
            "gpu_used_at_start": total - free,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def matrix_rate(bench: Bench) -> dict[str, Any]:
    """FLOP/s of a large product of random matrices, and of bytes copied: what shares are shares of."""
    edge = 256 if bench.is_cpu else 8192
    a, b = bench.noise(edge, edge), bench.noise(edge, edge).mT.contiguous()
    source = torch.empty(edge * edge * (1 if bench.is_cpu else 16), device=bench.device, dtype=bench.dtype)
    target = torch.empty_like(source)
    product = _median(bench, lambda: torch.mm(a, b))
    copy = _median(bench, lambda: target.copy_(source))
    rate = 2 * edge**3 / product
    found = {
        "matrix_tflops": rate / 1e12,
        "copy_gb_s": 2 * source.nbytes / copy / 1e9,
        "facts": {"matrix_rate": rate},
    }
    if not bench.is_cpu:
        free, total = torch.cuda.mem_get_info()
        # the plan counts this much for the context and its libraries (planning/phases.py)
        found["context_bytes"] = total - free - torch.cuda.memory_reserved()
    return found


def _median(bench: Bench, work: Any, rounds: int = 12) -> float:
    times = []
    for turn in range(rounds + 3):
        bench.wait()
        started = time.perf_counter()
        work()
        bench.wait()
        if turn >= 3:
            times.append(time.perf_counter() - started)
    return statistics.median(times)
