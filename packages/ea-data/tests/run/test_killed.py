"""RELIABILITY row 13: a run that was killed at any time, run again, ends in the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ea_data.records.store import iter_rows

#: Kills that hit a run. Each set is killed up to twice before it may end.
KILLS = 50 if os.environ.get("EA_FULL") else 4
PROFILE = """
[split]
name = "even"
seconds = 0.5
[[score]]
name = "change"
[[score]]
name = "light"
[[filter]]
name = "bright"
min = {least}
[[filter]]
name = "twin"
[caption]
name = "words"
"""


def outputs(out: Path) -> dict[str, bytes]:
    names = ("records.parquet", "dataset.json", "sources.json", "files.csv")
    files = [*(out / name for name in names), *out.glob("clips/**/*.mp4")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_killed_anywhere_it_ends_in_the_same_bytes(
    tmp_path: Path, plugin_file: Path, draw_video: Callable[..., Path]
):
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(8):
        draw_video(raw / f"{number}.mp4", 48, seed=number, size=(64, 96))
    draw_video(raw / "raise.mp4", 24, seed=50)
    (raw / "text.mp4").write_text("no video")
    profile = tmp_path / "profile.toml"
    profile.write_text(PROFILE.format(least=41.3))

    def start(out: Path) -> subprocess.Popen[bytes]:
        words = ["--plugin", str(plugin_file), "data", "run", str(raw), "-o", str(out)]
        words += ["--profile", str(profile), "--workers", "2", "--no-report"]
        program = "import sys; from ea_runtime.cli.main import main; main(sys.argv[1:])"
        return subprocess.Popen(
            [sys.executable, "-c", program, *words], stderr=subprocess.DEVNULL, start_new_session=True
        )

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    usual = time.monotonic() - began
    expected = outputs(tmp_path / "whole")
    statuses = [row["status"] for row in iter_rows(tmp_path / "whole")]
    assert {"ok", "dropped", "error"} <= set(statuses)

    chance = random.Random(7)
    landed = sets = 0
    while landed < KILLS and sets < 3 * KILLS:
        out = tmp_path / f"set {sets}"
        sets += 1
        for attempt in range(2):
            began = time.monotonic()
            run = start(out)
            try:
                run.wait(chance.uniform(0.2, 1.0) * usual)
                if not attempt:
                    usual = time.monotonic() - began  # the machine has become faster
            except subprocess.TimeoutExpired:
                landed += 1
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
        assert start(out).wait() == 0
        assert outputs(out) == expected
        rows = [row["clip_id"] for row in iter_rows(out)]
        assert len(rows) == len(set(rows)) == len(statuses)
        listed = json.loads((out / "dataset.json").read_text())
        assert len(listed) == statuses.count("ok")
        assert not (out / ".work").exists()
    print(f"{landed} kills of {sets} sets, a run takes {usual:.1f} s")  # noqa: T201 - the figure to report
    assert landed >= KILLS


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, plugin_file: Path, draw_video: Callable[..., Path]):
    raw = tmp_path / "raw"
    raw.mkdir()
    draw_video(raw / "hang.mp4", 24)
    profile = tmp_path / "profile.toml"
    profile.write_text(PROFILE.format(least=0))
    words = ["--plugin", str(plugin_file), "data", "run", str(raw), "-o", str(tmp_path / "set")]
    # a shell's background job ignores SIGINT, and so would what is started from it
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from ea_runtime.cli.main import main; main(sys.argv[1:])"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, *words, "--profile", str(profile), "--timeout", "300"],
        stderr=subprocess.PIPE,
        text=True,
    )
    segment = tmp_path / "set" / "ledger"
    deadline = time.monotonic() + 60
    while not any(segment.glob("0*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=30)
    assert run.returncode == 130
    line = told.strip().splitlines()[-1]
    assert "the same command resumes" in line
    assert "Traceback" not in told
