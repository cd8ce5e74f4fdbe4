"""Memory: of a run against its plan, of blocks that wait in main memory under a cap, and of decoding any length."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from gpu_rows.bench import Bench

LENGTHS = (9, 72, 144, 720)


def plan(bench: Bench, size: str) -> dict[str, Any]:
    """Bytes that `pipe.plan` predicts for denoising and decoding, and those that torch's allocator took."""
    from ea_runtime.machine.memory import peak_rss
    from ea_runtime.planning.phases import CUDA_CONTEXT

    height, width, frames = bench.size(size)
    pipe = bench.pipeline()
    settings = {"num_frames": frames, "height": height, "width": width, "num_inference_steps": 1}
    forecast = pipe.plan(**settings)
    predicted = {phase.name: phase.device_bytes for phase in forecast.phases}
    request = {**bench.prompts(), **settings, "sampler": "dpm++", "seed": 0, "output": "latents"}
    latents = pipe(**request).latents  # the canary's trials are no part of the plan
    measured = {}
    for phase in ("denoising", "decoding"):
        bench.free()
        if phase == "denoising":
            latents = pipe(**request).latents
        else:
            for _ in pipe.iter_frames(latents):
                pass
        peak = bench.peak()
        measured[phase] = peak_rss() if peak is None else peak + CUDA_CONTEXT
    return {
        "way": forecast.way.name,
        "predicted": {name: predicted[name] for name in measured},
        "measured": measured,
        "errors": {name: predicted[name] / bytes_ - 1 for name, bytes_ in measured.items()},
    }


@contextlib.contextmanager
def capped(bench: Bench, cap: float) -> Iterator[None]:
    """As if the card had `cap` bytes, what CUDA itself takes included. Nothing on a CPU."""
    if bench.is_cpu:
        yield
        return
    bench.free()
    free, total = torch.cuda.mem_get_info()
    used = total - free - torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(max(cap - used, 1) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def offload(bench: Bench, size: str, cap: float) -> dict[str, Any]:
    """A pass of the denoiser whose blocks wait in main memory, against the resident one, under a cap."""
    from ea_runtime.generation.offload import group_offload

    passes = Passes(bench, size)
    passes.run()
    wanted, resident_s = passes.run()
    resident_peak = bench.peak()
    if "vae" in bench.built:
        bench.vae().to("cpu")
    bench.dit().to("cpu")
    try:
        with capped(bench, cap):
            group_offload(bench.dit(), bench.device, "block_level")
            passes.run()
            got, offloaded_s = passes.run()
            peak = bench.peak()
    finally:
        bench.drop()  # the hooks stay on what they are on
    error = float((wanted - got).norm() / wanted.norm())
    assert error < 1e-2, f"the offloaded pass differs by {error:.1e}"
    return {
        "resident_s": resident_s,
        "ours_s": offloaded_s,
        "error": error,
        "is_exact": bool(torch.equal(wanted, got)),
        "resident_peak": resident_peak,
        "peak": peak,
        "cap": cap,
    }


def fp8_storage(bench: Bench, size: str) -> dict[str, Any]:
    """A pass of the denoiser whose weights are stored in fp8 and computed in its own format."""
    from ea_runtime.models.fp8 import store_in_fp8

    passes = Passes(bench, size)
    passes.run()
    wanted, plain_s = passes.run()
    plain_peak = bench.peak()
    try:
        store_in_fp8(bench.dit(), "denoiser")
        passes.run()
        got, ours_s = passes.run()
        peak = bench.peak()
    finally:
        bench.drop()
    error = float((wanted - got).norm() / wanted.norm())
    assert 0 < error < 0.5, f"weights in fp8 change the pass by {error:.1e}"
    return {"plain_s": plain_s, "ours_s": ours_s, "error": error, "plain_peak": plain_peak, "peak": peak}


class Passes:
    """Passes of the denoiser for one prompt, prepared as pipelines do it."""

    def __init__(self, bench: Bench, size: str) -> None:
        self.bench = bench
        self.latents = bench.noise(*bench.latent_shape(size))
        prompts = bench.prompts()
        self.text, self.mask = prompts["prompt_embeds"], prompts["prompt_attention_mask"]

    def run(self) -> tuple[torch.Tensor, float]:
        """The noise and the seconds; the peak is that of this pass."""
        self.bench.free()
        started = time.perf_counter()
        model = self.bench.dit()
        with torch.no_grad():
            prepared = model.prepare(self.text, self.mask, [500.0])
            out = model(self.latents, 500.0, prepared=prepared).sample.float().cpu()
        return out, time.perf_counter() - started


def flat(bench: Bench, size: str) -> dict[str, Any]:
    """The peak of decoding videos of several lengths, smoothed, with frames dropped as they come."""
    vae, (_, channels, _, height, width) = bench.vae(), bench.latent_shape(size)
    peaks: dict[int, int | None] = {}
    seconds = {}
    for frames in (9, 27) if bench.is_cpu else LENGTHS:
        latents = bench.noise(1, channels, frames // 3, height, width)
        bench.free()
        started = time.perf_counter()
        with torch.inference_mode():
            generator = torch.Generator().manual_seed(0)
            count = sum(part.shape[2] for part in vae.iter_decode(latents, True, generator))
        bench.wait()
        assert count == frames, f"{count} frames came, {frames} were asked for"
        seconds[frames], peaks[frames] = time.perf_counter() - started, bench.peak()
    known = [peak for peak in peaks.values() if peak is not None]
    # 9 frames are one chunk, which has no seams to smooth
    long = [peak for frames, peak in peaks.items() if peak is not None and frames > 9]
    return {
        "peaks": {str(frames): peak for frames, peak in peaks.items()},
        "seconds": {str(frames): taken for frames, taken in seconds.items()},
        "spread": max(known) / min(known) - 1 if known else None,
        "spread_of_smoothed": max(long) / min(long) - 1 if long else None,
    }
