"""Drawn sets and raw video have the same bytes whatever the heap holds and however many threads there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ea_runtime.files.hashes import content_hash

PROGRAM = """
import sys
from ea_data.draw.raw_write import write_raw
from ea_data.draw.write import DrawConfig, write_set
write_set(sys.argv[1] + "/set", DrawConfig(num_clips=2, num_pictures=1))
write_raw(sys.argv[1] + "/raw", 2, height=128, width=192, fps=12)
"""


def test_three_processes_draw_the_same_files(tmp_path: Path) -> None:
    found: dict[str, set[str]] = {}
    for heap, threads in (("0", "1"), ("85", "2"), ("170", "1")):
        environment = {**os.environ, "MALLOC_PERTURB_": heap, "OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / heap)], check=True, env=environment)
        for path in (tmp_path / heap).rglob("*.*"):
            found.setdefault(str(path.relative_to(tmp_path / heap)), set()).add(content_hash(path))
    assert sum(name.endswith(".mp4") for name in found) == 4
    assert {name for name, hashes in found.items() if len(hashes) > 1} == set()
