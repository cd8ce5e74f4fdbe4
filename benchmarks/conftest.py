"""Benchmarks: `uv run pytest benchmarks`. Results, with machine and versions, go to benchmarks/results/."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `baselines`, and this file as `conftest`
RESULTS = Path(__file__).parent / "results"


def pytest_xdist_auto_num_workers() -> int:
    """Benchmarks run one at a time, whatever pyproject.toml says for tests."""
    return 0


def machine() -> dict[str, Any]:
    """Everything besides the code that a figure depends on."""
    import os

    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        processor = names[0] if names else processor
    packages = ("torch", "diffusers", "transformers", "av", "numpy")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


@dataclass
class Row:
    """One case: seconds of the baseline and of ours in the same run, and the relative difference of their results."""

    case: str
    baseline: float
    ours: float
    error: float

    def told(self) -> dict[str, Any]:
        ratio = round(self.baseline / self.ours, 2)
        return {
            "case": self.case,
            "baseline_s": float(f"{self.baseline:.4g}"),
            "ours_s": float(f"{self.ours:.4g}"),
            "ratio": ratio,
            "error": float(f"{self.error:.1e}"),
        }


def compare(case: str, baseline: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> Row:
    """Medians of both, interleaved after one warm-up, so that other load on the machine slows both alike."""
    import torch

    times: dict[str, list[float]] = {"baseline": [], "ours": []}
    results: dict[str, Any] = {}
    for turn in range(rounds + 1):
        for name, way in (("baseline", baseline), ("ours", ours)):
            started = time.perf_counter()
            with torch.inference_mode():
                results[name] = way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn or not rounds:
                times[name].append(time.perf_counter() - started)
    wanted, found = (torch.as_tensor(results[name]).double() for name in ("baseline", "ours"))
    error = float((wanted - found).norm() / wanted.norm())
    return Row(case, statistics.median(times["baseline"]), statistics.median(times["ours"]), error)


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """report(name, figures): prints the figures and writes benchmarks/results/<name>.json.

    rows: comparisons, which `ea bench report` shows as ratios. gpu: the benchmark's file and the cases that only a GPU
    measures; a run there writes <name>_gpu.json.
    """

    def write(
        name: str,
        figures: dict[str, Any] | None = None,
        rows: list[Row] | None = None,
        gpu: tuple[str, list[str]] | None = None,
    ) -> None:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        record: dict[str, Any] = {"machine": machine()}
        if figures is not None:
            record["figures"] = figures
        if rows is not None:
            record["rows"] = [row.told() for row in rows]
            figures = {row.case: f"{row.baseline / row.ours:.2f}x" for row in rows} | (figures or {})
        if gpu is not None:
            record["gpu"] = {"command": f"uv run pytest benchmarks/{gpu[0]} -m gpu", "cases": gpu[1]}
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        figures = figures or {}
        with capsys.disabled():
            print(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))

    return write


@pytest.fixture(autouse=True)
def _same_threads() -> Any:
    """Each benchmark starts with the same number of threads, even after one that changes it."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def needs_gpu() -> None:
    """Skips without a CUDA device."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
