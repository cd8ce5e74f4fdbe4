"""Start-up times: `ea --help` against the bare interpreter, and the first video."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROUNDS = 7


def seconds(words: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def test_help_against_the_bare_interpreter(benchmark: Any, report: Any) -> None:
    bare = [sys.executable, "-c", "pass"]
    ours = [sys.executable, "-m", "ea_runtime.cli.main", "--help"]
    seconds(ours)  # bytecode is written once

    def measure() -> tuple[float, float]:
        pairs = [(seconds(bare), seconds(ours)) for _ in range(ROUNDS)]  # interleaved
        return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)

    nothing, help_ = benchmark.pedantic(measure, rounds=1)
    report(
        "startup_help",
        {
            "python -c pass": f"{nothing:.3f} s",
            "ea --help": f"{help_:.3f} s",
            "over it": f"{help_ - nothing:.3f} s",
        },
    )


def test_first_video(benchmark: Any, report: Any, tmp_path: Path) -> None:
    """A fresh process from the prompt to the file, at the bundled model's default size."""
    number = iter(range(1000))

    def run() -> dict[str, Any]:
        out = tmp_path / f"{next(number)}.mp4"
        words = [
            sys.executable,
            "-m",
            "ea_runtime.cli.main",
            "generate",
            "a red circle moves right",
            "-o",
            str(out),
        ]
        total = seconds(words)
        parts = json.loads(out.with_suffix(".json").read_text(encoding="utf-8")).get("timings", {})
        return {"total": total, **parts}

    runs = benchmark.pedantic(lambda: [run() for _ in range(3)], rounds=1)
    middle = sorted(runs, key=lambda r: r["total"])[1]
    report("first_video", {name: f"{value:.2f} s" for name, value in middle.items()})
