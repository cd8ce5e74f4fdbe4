"""A whole run: denoising by the pipeline and decoding as a stream, with the time of each."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from gpu_rows.bench import Bench, NotHere

#: seconds besides steps and decoding: the canary's trials of each operation, and what a first run allocates
_EXTRA = 25.0


def whole(bench: Bench, size: str, steps: int) -> dict[str, Any]:
    """All steps and all frames, smoothed as by default; compiled if that was measured and is faster.

    Raises NotHere if the measured step says that it does not fit in the time left.
    """
    height, width, frames = bench.size(size)
    steps = 2 if bench.is_cpu else steps
    known = {
        way: bench.facts[f"step {size}, {way}"]
        for way in ("ours", "compiled")
        if f"step {size}, {way}" in bench.facts
    }
    if not known:
        raise NotHere("no step was measured before, so its time is not known")
    way = min(known, key=lambda name: known[name])
    chunks = -(-frames // 9)
    decoding = 2.6 * chunks * bench.facts.get(f"chunk {size}, ours", 0.5)
    needed = _EXTRA + (steps + 1) * known[way] + decoding
    if needed > bench.seconds_left and not bench.is_cpu:
        raise NotHere(
            f"{steps} steps of {known[way]:.2f} s need {needed:.0f} s, {bench.seconds_left:.0f} s are left"
        )
    pipe = bench.pipeline()
    request: dict[str, Any] = {
        **bench.prompts(),
        "num_frames": frames,
        "height": height,
        "width": width,
        "sampler": "dpm++",
        "seed": 0,
        "output": "latents",
    }
    with contextlib.ExitStack() as stack:
        if way == "compiled":
            stack.enter_context(bench.compiled("dit", False))
        started = time.perf_counter()
        pipe(**request, num_inference_steps=1)  # the canary tries every operation, kernels are chosen
        bench.wait()
        first = time.perf_counter() - started
        bench.free()
        started = time.perf_counter()
        latents = pipe(**request, num_inference_steps=steps).latents
        bench.wait()
        denoised = time.perf_counter() - started
    denoising_peak = bench.peak()
    bench.free()
    started = time.perf_counter()
    count = sum(1 for _ in pipe.iter_frames(latents))
    bench.wait()
    decoded = time.perf_counter() - started
    assert count == frames, f"{count} frames came, {frames} were asked for"
    return {
        "steps": steps,
        "way": way,
        "first_run_s": first,
        "denoising_s": denoised,
        "decoding_s": decoded,
        "total_s": denoised + decoded,
        "denoising_peak": denoising_peak,
        "decoding_peak": bench.peak(),
    }
