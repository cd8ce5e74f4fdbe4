"""A decoded chunk (3 latent frames -> 9 frames), and a whole video, against plain eager PyTorch."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from baselines import vae as reference  # pyright: ignore[reportMissingImports]  (benchmarks/)

from gpu_rows.bench import Bench
from gpu_rows.rows import LARGE


def run(bench: Bench, size: str, way: str) -> dict[str, Any]:
    """Seconds of one chunk. way: "ours", "compiled" or "CUDA graphs"."""
    vae, (_, channels, _, height, width) = bench.vae(), bench.latent_shape(size)
    z = bench.noise(1, channels, 3, height, width)
    is_graph = way == "CUDA graphs"

    def ours() -> torch.Tensor:
        if is_graph:
            torch.compiler.cudagraph_mark_step_begin()
        return vae.decode(z).sample

    with contextlib.ExitStack() as stack:
        if way != "ours":
            stack.enter_context(bench.compiled("vae", is_graph))
        found = bench.compare(lambda: reference.decode(vae, z), ours, 1 if bench.is_cpu else 5)
    return {
        **bench.rated(found, bench.flops("chunk", size)),
        "facts": {f"chunk {size}, {way}": found["ours_s"]},
    }


def video(bench: Bench, way: str) -> dict[str, Any]:
    """All frames of the largest size from their latents, "plain" or "smoothed"; the baseline holds them all."""
    vae, latents, smooth = bench.vae(), bench.noise(*bench.latent_shape(LARGE)), way == "smoothed"

    def ours() -> torch.Tensor:
        frames = vae.iter_decode(latents, smooth, torch.Generator().manual_seed(0))
        return torch.cat(list(frames), dim=2)

    def baseline() -> torch.Tensor:
        return reference.decode_video(vae, latents, smooth, torch.Generator().manual_seed(0))

    return bench.compare(baseline, ours, 1)
