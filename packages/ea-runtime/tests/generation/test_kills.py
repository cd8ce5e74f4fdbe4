"""kill -9 of a run at random moments: the next one continues from the saved place, and the file is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ea_vae")
pytest.importorskip("ea_dit")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
KILLS = 15 if os.environ.get("EA_FULL") == "1" else 7


@pytest.fixture(scope="module")
def killed(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Findings of killed_runs.py: on whole states, and on the twins."""
    program = [sys.executable, str(Path(__file__).with_name("killed_runs.py"))]
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [*program, str(random_model), str(folder), f"whole,{KILLS},1", "no-history,4,2", "no-generators,4,2"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_killed_runs_give_the_same_file(killed: dict[str, Any]) -> None:
    result = killed["whole"]
    videos = result["videos"]
    assert sum(one["kills"] for one in videos) >= KILLS
    assert all(one["same"] for one in videos), videos
    assert result["left"] == []
    found = [place for one in videos for place in one["resumed"]]
    assert any(place.startswith("step ") for place in found)
    assert any(place.startswith("denoised") and "0 frames" not in place for place in found)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["no-history", "no-generators"])
def test_a_state_that_lacks_a_part_is_caught(killed: dict[str, Any], state: str) -> None:
    """The twins."""
    videos = killed[state]["videos"]
    assert not all(one["same"] for one in videos), videos
