"""The approximate step cache on `tiny`: time saved, distance of its videos from the exact ones, and adherence to the
prompts.

EA_FULL=1 takes 64 prompts instead of 4. The frames are measured as `ea data check-drawn` measures clips.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np

THRESHOLDS = (0.05, 0.1, 0.2, 0.4)


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    error = float(((found.astype(np.float64) - wanted) ** 2).mean())
    return 10 * float(np.log10(255**2 / error)) if error else 99.0


def test_saving_and_loss(benchmark: Any, report: Any) -> None:
    from ea_data.draw.caption import sample_prompts
    from ea_data.draw.check import check_prompts
    from ea_runtime import VideoPipeline

    pipe = VideoPipeline.from_pretrained("tiny", device="cpu")
    prompts = sample_prompts(64 if os.environ.get("EA_FULL") else 4)
    ways: dict[str, str | None] = {"exact": None} | {f"{t:g}": f"teacache:{t:g}" for t in THRESHOLDS}

    def measure() -> dict[str, Any]:
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        frames: dict[str, list[np.ndarray]] = {name: [] for name in ways}
        skipped: dict[str, list[int]] = {name: [] for name in ways}
        for seed, prompt in enumerate(prompts):
            for name, step_cache in ways.items():  # interleaved
                started = time.perf_counter()
                video = pipe(prompt, seed=seed, step_cache=step_cache, output="latents")
                seconds[name].append(time.perf_counter() - started)
                stream = pipe.iter_frames(video.latents, seed=video.decode_seeds[0])
                frames[name].append(np.stack(list(stream)))
                words = video.notes[-1].split() if step_cache else ["0", "of", "0"]
                skipped[name].append(int(words[words.index("of") - 1]))
        told = {}
        for name in ways:
            right, asked = check_prompts(zip(prompts, frames[name], strict=True)).counts["all"]
            told[name] = {
                "denoising_s": round(statistics.median(seconds[name]), 3),
                "faster": round(statistics.median(seconds["exact"]) / statistics.median(seconds[name]), 2),
                "passes_skipped": round(statistics.mean(skipped[name]), 1),
                "psnr_db": round(
                    statistics.mean(psnr(a, b) for a, b in zip(frames[name], frames["exact"], strict=True)), 1
                ),
                "adherence": f"{right} of {asked}",
            }
        return told

    told = benchmark.pedantic(measure, rounds=1)
    report("step_cache", {"prompts": len(prompts), **told})
    assert told["exact"]["psnr_db"] == 99.0
    assert all(told[name]["psnr_db"] > 10 for name in told)
