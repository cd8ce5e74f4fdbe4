"""A denoising step with guidance, in several ways, against plain eager PyTorch written the reference's way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from baselines import dit as reference  # pyright: ignore[reportMissingImports]  (benchmarks/)

from gpu_rows import fp8
from gpu_rows.bench import Bench

GUIDANCE = 6.0
STEP = 500


def run(bench: Bench, size: str, way: str) -> dict[str, Any]:
    """Seconds of one step of both branches. way: "ours", "compiled", "CUDA graphs", "fp8" or "fp8, compiled"."""
    is_graph = way == "CUDA graphs"
    with contextlib.ExitStack() as stack:
        if "fp8" in way:
            stack.enter_context(fp8.linears(bench.dit()))
        baseline, ours = make(bench, size, is_graph)
        if way not in ("ours", "fp8"):
            stack.enter_context(bench.compiled("dit", is_graph))
        found = bench.compare(baseline, ours, 1 if bench.is_cpu else 3)
    facts = {f"step {size}, {way}": found["ours_s"]}
    return {**bench.rated(found, 2 * bench.flops("step", size)), "facts": facts}


def make(bench: Bench, size: str, is_graph: bool = False) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Plain eager's step and ours, with the same latents and text."""
    model, latents = bench.dit(), bench.noise(*bench.latent_shape(size))
    prompts = bench.prompts()
    text = torch.cat([prompts["negative_prompt_embeds"], prompts["prompt_embeds"]])
    mask = torch.cat([prompts["negative_prompt_attention_mask"], prompts["prompt_attention_mask"]])
    timestep = torch.tensor([STEP], device=bench.device)
    with torch.inference_mode():
        prepared = model.prepare(text, mask, [float(STEP)])

    def ours() -> torch.Tensor:
        if is_graph:
            torch.compiler.cudagraph_mark_step_begin()
        out = model(latents, float(STEP), prepared=prepared).sample[:, : latents.shape[1]]
        without, with_text = out.chunk(2)
        return without + GUIDANCE * (with_text - without)

    def baseline() -> torch.Tensor:
        with fp8.off(model):
            return reference.step(model, latents, timestep, text, mask, GUIDANCE)

    return baseline, ours
