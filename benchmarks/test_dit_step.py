"""A denoising step with guidance (two branches) against plain eager PyTorch written the reference's way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from baselines import dit as reference
from conftest import compare
from networks import noise, published_dit, tiny

GUIDANCE = 6.0
STEP = 500
GPU_CASES = ["768x768x144, 28 blocks, bf16", "512x512x144, 28 blocks, bf16", "384x384x72, 28 blocks, bf16"]


def step(model: Any, case: str, latents: torch.Tensor, rounds: int, words: int = 12) -> Any:
    """An empty negative prompt (one token) and a prompt of `words`, both padded to 120 tokens."""
    from ea_runtime.generation.known_frames import nothing_given

    text = noise(2, 120, model.cfg.text_width, device=latents.device, dtype=latents.dtype)
    mask = torch.zeros(2, 120, dtype=torch.long, device=latents.device)
    mask[0, 0], mask[1, :words] = 1, 1
    timestep = torch.tensor([STEP], device=latents.device)
    with torch.inference_mode():
        prepared = model.prepare(text, mask, [float(STEP)])
    known = nothing_given(model.cfg, latents)

    def ours() -> torch.Tensor:
        out = model(latents, float(STEP), prepared=prepared, **known).sample[:, : latents.shape[1]]
        without, with_text = out.chunk(2)
        return without + GUIDANCE * (with_text - without)

    return compare(case, lambda: reference.step(model, latents, timestep, text, mask, GUIDANCE), ours, rounds)


def test_a_step(benchmark: Any, report: Any) -> None:
    small, wide = tiny("denoiser"), published_dit(4)

    def measure() -> list[Any]:
        return [
            step(small, "tiny, 64x64, 18 frames", noise(1, 4, 6, 8, 8), 15),
            step(small, "tiny, 64x64, 36 frames", noise(1, 4, 12, 8, 8), 9),
            step(small, "tiny, 128x128, 18 frames", noise(1, 4, 6, 16, 16), 7),
            step(small, "tiny, 64x64 picture", noise(1, 4, 1, 8, 8), 15),
            step(wide, "width 1,152, 4 blocks, 128x128, 9 frames", noise(1, 4, 3, 16, 16), 5),
            step(
                wide,
                "width 1,152, 4 blocks, 128x128, 9 frames, 20 words",
                noise(1, 4, 3, 16, 16),
                5,
                words=20,
            ),
            step(wide, "width 1,152, 4 blocks, 256x256, 9 frames", noise(1, 4, 3, 32, 32), 2),
            step(wide, "width 1,152, 4 blocks, 256x256 picture", noise(1, 4, 1, 32, 32), 3),
        ]

    rows = benchmark.pedantic(measure, rounds=1)
    report("dit_step", rows=rows, gpu=("test_dit_step.py", GPU_CASES))
    assert all(row.error < 1e-4 for row in rows)


@pytest.mark.gpu
def test_a_step_on_a_gpu(benchmark: Any, report: Any, needs_gpu: None) -> None:
    model = published_dit(28).to("cuda", torch.bfloat16)
    sizes = zip(GPU_CASES, ((48, 96), (48, 64), (24, 48)), strict=True)
    where = {"device": "cuda", "dtype": torch.bfloat16}

    def measure() -> list[Any]:
        return [
            step(model, case, noise(1, 4, frames, size, size, **where), 3) for case, (frames, size) in sizes
        ]

    rows = benchmark.pedantic(measure, rounds=1)
    report("dit_step_gpu", rows=rows)
    assert all(row.error < 5e-2 for row in rows)
