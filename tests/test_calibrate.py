"""`ea plan --calibrate` as its users run it: the machine is measured once, and plans have seconds from then on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: rates that every CPU has; others are left out where the work takes no time that could be seen
RATES = {
    *("imports", "disk", "writers", "reads", "calls", "moved", "swept", "linear", "attention"),
    *("convolution", "winograd", "transformed", "wide"),
}


def plan(cache: Path, *options: str) -> dict[str, Any]:
    words = ["-m", "ea_runtime.cli.main", "plan", "--device", "cpu", "--num-frames", "18", "--json", *options]
    env = os.environ | {"EA_CACHE": str(cache)}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_machine_is_measured_and_plans_have_seconds(tmp_path: Path) -> None:
    assert all(phase["seconds"] is None for phase in plan(tmp_path)["phases"])
    measured = plan(tmp_path, "--calibrate")
    (found,) = json.loads((tmp_path / "plans.json").read_text())["machines"].values()
    assert set(found["rates"]) >= RATES
    assert set(found["starts"]) == {phase["name"] for phase in measured["phases"]}
    assert found["program_bytes"] > 200_000_000
    assert all(phase["seconds"] > 0 for phase in measured["phases"])
    assert plan(tmp_path)["phases"] == measured["phases"]
