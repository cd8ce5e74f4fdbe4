"""144 frames from their latents, plain and smoothed, against plain eager PyTorch that holds all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from baselines import vae as reference
from conftest import compare
from networks import noise, published_vae, tiny

GPU_CASES = ["768x768x144 plain, bf16", "768x768x144 smoothed, bf16"]


def decoding(vae: Any, case: str, latents: torch.Tensor, smooth: bool, rounds: int) -> Any:
    def ours() -> torch.Tensor:
        return torch.cat(list(vae.iter_decode(latents, smooth, torch.Generator().manual_seed(0))), dim=2)

    def baseline() -> torch.Tensor:
        return reference.decode_video(vae, latents, smooth, torch.Generator().manual_seed(0))

    return compare(case, baseline, ours, rounds)


def test_144_frames(benchmark: Any, report: Any) -> None:
    vae, latents = tiny("vae"), noise(1, 4, 48, 8, 8)

    def measure() -> list[Any]:
        return [
            decoding(vae, "tiny, 64x64x144 plain", latents, False, 1),
            decoding(vae, "tiny, 64x64x144 smoothed", latents, True, 0),
        ]

    rows = benchmark.pedantic(measure, rounds=1)
    report("decode_video", rows=rows, gpu=("test_decode_video.py", GPU_CASES))
    assert all(row.error < 1e-4 for row in rows)


@pytest.mark.gpu
def test_144_frames_on_a_gpu(benchmark: Any, report: Any, needs_gpu: None) -> None:
    vae = published_vae().to("cuda", torch.bfloat16)
    latents = noise(1, 4, 48, 96, 96, device="cuda", dtype=torch.bfloat16)
    ways = zip(GPU_CASES, (False, True), strict=True)
    rows = benchmark.pedantic(
        lambda: [decoding(vae, case, latents, smooth, 1) for case, smooth in ways], rounds=1
    )
    report("decode_video_gpu", rows=rows)
    assert rows[0].error < 2e-2
