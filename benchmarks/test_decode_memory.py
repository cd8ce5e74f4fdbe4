"""Memory of decoding, which must not grow with the length of the video.

Each length is decoded by `iter_decode` in a separate process with one thread, as many at once as there are cores.
The figure is that process's peak resident set, with frames passed on as they come.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

LENGTHS = (9, 72, 144, 720)

_CHILD = """
import os, sys
os.environ["OMP_NUM_THREADS"] = "1"
from ea_runtime.machine.allocator import return_free_memory, tune_allocator
tune_allocator()  # as `ea generate` does
import torch
from ea_runtime.models.loading import load_parts
from ea_runtime.machine.memory import peak_rss
torch.set_num_threads(1)
vae = load_parts("tiny", dtype=torch.float32, parts=("vae",)).vae
num_frames, smooth = int(sys.argv[1]), sys.argv[2] == "smooth"
latents = torch.randn(1, 4, vae.num_latents_for(num_frames), 8, 8, generator=torch.Generator().manual_seed(0)) * 5
count = 0
with torch.inference_mode():
    for frames in vae.iter_decode(latents, smooth=smooth):
        count += frames.shape[2]
        del frames
        return_free_memory()
assert count == num_frames, count
print(peak_rss())
"""


def peak_rss(num_frames: int, mode: str) -> float:
    """Peak memory, in MB, of a process that decodes that many frames."""
    words = [sys.executable, "-c", _CHILD, str(num_frames), mode]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1e6


@pytest.mark.parametrize("mode", ["plain", "smooth"])
def test_decoding_memory_is_flat(benchmark: Any, report: Any, mode: str) -> None:
    def measure() -> dict[int, float]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = {n: pool.submit(peak_rss, n, mode) for n in reversed(LENGTHS)}  # the longest first
        return {n: found[n].result() for n in LENGTHS}

    peaks = benchmark.pedantic(measure, rounds=1)
    spread = max(peaks.values()) / min(peaks.values()) - 1
    figures = {f"{n} frames": f"{mb:.1f} MB" for n, mb in peaks.items()} | {"spread": f"{spread:.2%}"}
    report(f"decode_memory_{mode}", figures)
    assert spread <= 0.02, f"peak memory varies by {spread:.1%} over {LENGTHS} frames: {peaks}"
