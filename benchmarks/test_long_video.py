"""Long videos, window by window: memory, which must not grow with length, and the joins as latents and as pixels.

Each video is made by `tiny` as `ea generate` makes it, in a separate process with one thread. The figures are that
process's peak resident set, and what its sidecar says of the joins.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHORT, LONG = 36, 720

_CHILD = """
import sys
from ea_runtime.cli.main import main
from ea_runtime.machine.memory import peak_rss
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(peak_rss())
"""


def generated(path: Path, num_frames: int, *words: str) -> tuple[float, list[dict[str, Any]]]:
    """Peak memory in MB of a process that makes that many frames, and the measures of their joins."""
    program = [sys.executable, "-c", _CHILD, "generate", "a red circle moves right", "--device", "cpu"]
    settings = ["--dtype", "float32", "--num-frames", str(num_frames), "-o", str(path), *words]
    done = subprocess.run(
        [*program, *settings],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    record = json.loads(path.with_suffix(".json").read_text())
    return int(done.stdout.splitlines()[-1]) / 1e6, record["joins"]


def test_memory_is_flat(benchmark: Any, report: Any, tmp_path: Path) -> None:
    def measure() -> dict[int, float]:
        return {n: generated(tmp_path / f"{n}.mp4", n, "--steps", "2")[0] for n in (SHORT, LONG)}

    peaks = benchmark.pedantic(measure, rounds=1)
    ratio = peaks[LONG] / peaks[SHORT]
    report(
        "long_video_memory",
        {f"{n} frames": f"{mb:.1f} MB" for n, mb in peaks.items()} | {"ratio": f"{ratio:.3f}"},
    )
    assert ratio <= 1.05, f"peak memory grows with length: {peaks}"


@pytest.mark.parametrize("join", ["latents", "pixels"])
def test_joins(benchmark: Any, report: Any, tmp_path: Path, join: str) -> None:
    """Change of colour at each join, and its trend over the joins."""

    def measure() -> list[dict[str, Any]]:
        return generated(tmp_path / "long.mp4", LONG, "--join", join)[1]

    joins = benchmark.pedantic(measure, rounds=1)
    drift = np.array([one["delta_e"] for one in joins])
    slope = np.polyfit(np.arange(len(drift)), drift, 1)[0]
    figures = {
        "joins": str(len(joins)),
        "mean dE": f"{drift.mean():.2f}",
        "worst dE": f"{drift.max():.2f}",
        "trend, dE a join": f"{slope:+.4f}",
        "mean sharpness": f"{np.mean([one['sharpness'] for one in joins]):.3f}",
        "worst flow jump": f"{max(one['flow_jump'] for one in joins):.2f} px",
    }
    report(f"long_video_joins_{join}", figures)
