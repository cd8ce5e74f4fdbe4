"""A chunk of the VAE's decoder (3 latent frames -> 9 frames), and of its encoder, against plain eager PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from baselines import vae as reference
from conftest import compare
from networks import noise, published_vae, tiny

GPU_CASES = ["768x768 chunk, bf16", "512x512 chunk, bf16", "384x384 chunk, bf16"]


def decoding(vae: Any, case: str, z: torch.Tensor, rounds: int) -> Any:
    return compare(case, lambda: reference.decode(vae, z), lambda: vae.decode(z).sample, rounds)


def encoding(vae: Any, case: str, x: torch.Tensor, rounds: int) -> Any:
    return compare(
        case,
        lambda: reference.encode(vae, x),
        lambda: vae.encode(x).latent_dist.parameters,
        rounds,
    )


def test_chunks(benchmark: Any, report: Any) -> None:
    small, full = tiny("vae"), published_vae()

    def measure() -> list[Any]:
        return [
            decoding(small, "tiny, 64x64 chunk", noise(1, 4, 3, 8, 8), 7),
            decoding(small, "tiny, 32x32 chunk", noise(1, 4, 3, 4, 4), 7),
            decoding(small, "tiny, 64x64 picture", noise(1, 4, 1, 8, 8), 7),
            encoding(small, "tiny, 64x64 chunk encoded", noise(1, 3, 9, 64, 64), 7),
            decoding(full, "published widths, 32x32 chunk", noise(1, 4, 3, 4, 4), 3),
            decoding(full, "published widths, 64x64 chunk", noise(1, 4, 3, 8, 8), 1),
            decoding(full, "published widths, 128x128 chunk", noise(1, 4, 3, 16, 16), 0),
            decoding(full, "published widths, 64x64 picture", noise(1, 4, 1, 8, 8), 1),
            encoding(full, "published widths, 64x64 chunk encoded", noise(1, 3, 9, 64, 64), 1),
            encoding(full, "published widths, 128x128 chunk encoded", noise(1, 3, 9, 128, 128), 0),
        ]

    rows = benchmark.pedantic(measure, rounds=1)
    report("vae_decode", rows=rows, gpu=("test_vae_decode.py", GPU_CASES))
    assert all(row.error < 1e-4 for row in rows)


@pytest.mark.gpu
def test_chunks_on_a_gpu(benchmark: Any, report: Any, needs_gpu: None) -> None:
    full = published_vae().to("cuda", torch.bfloat16)
    sizes = zip(GPU_CASES, (96, 64, 48), strict=True)
    where = {"device": "cuda", "dtype": torch.bfloat16}

    def measure() -> list[Any]:
        return [decoding(full, case, noise(1, 4, 3, size, size, **where), 5) for case, size in sizes]

    rows = benchmark.pedantic(measure, rounds=1)
    report("vae_decode_gpu", rows=rows)
    assert all(row.error < 2e-2 for row in rows)
