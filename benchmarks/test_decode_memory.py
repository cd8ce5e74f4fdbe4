"""Is the memory of decoding flat in the length of the video?

Each length is decoded by `iter_decode` in a process of its own; what counts is that process's peak resident
set, with the frames handed on as they come.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

LENGTHS = (9, 72, 144, 720)
REPEATS = 1

_CHILD = """
import os, resource, sys
os.environ["OMP_NUM_THREADS"] = "1"
from ea_runtime.allocator import return_freed_memory
return_freed_memory()  # as `ea generate` does
import torch
from ea_runtime.folder import load_parts
torch.set_num_threads(1)
vae = load_parts("tiny", dtype=torch.float32, parts=("vae",)).vae
num_frames, smooth = int(sys.argv[1]), sys.argv[2] == "smooth"
latents = torch.randn(1, 4, vae.num_latents_for(num_frames), 8, 8, generator=torch.Generator().manual_seed(0)) * 5
count = 0
with torch.inference_mode():
    for frames in vae.iter_decode(latents, smooth=smooth):
        count += frames.shape[2]
assert count == num_frames, count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_rss(num_frames: int, mode: str) -> float:
    """MB at the peak of a process that decodes so many frames."""
    words = [sys.executable, "-c", _CHILD, str(num_frames), mode]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


@pytest.mark.parametrize("mode", ["plain", "smooth"])
def test_decoding_memory_is_flat(benchmark: Any, report: Any, mode: str) -> None:
    def measure() -> dict[int, float]:
        # the lengths interleaved, the median of the repeats
        runs = [{n: peak_rss(n, mode) for n in LENGTHS} for _ in range(REPEATS)]
        return {n: sorted(run[n] for run in runs)[REPEATS // 2] for n in LENGTHS}

    peaks = benchmark.pedantic(measure, rounds=1)
    spread = max(peaks.values()) / min(peaks.values()) - 1
    figures = {f"{n} frames": f"{mb:.1f} MB" for n, mb in peaks.items()} | {"spread": f"{spread:.2%}"}
    report(f"decode_memory_{mode}", figures)
    assert spread <= 0.02, f"peak memory varies by {spread:.1%} over {LENGTHS} frames: {peaks}"
