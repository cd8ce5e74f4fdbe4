"""diffusers' offloading hooks: what prepare() and step caches read outside `forward` is in place when they read it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor

from ea_dit import Transformer3DModel

PLACES = ("model", "prepared", "text_groups")
KINDS = [
    {"offload_type": "block_level", "num_blocks_per_group": 1},
    {"offload_type": "block_level", "num_blocks_per_group": 3},
    {"offload_type": "leaf_level"},
]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that wait on disk are NaN, not what the memory held before; those that come back are aligned."""
    monkeypatch.setattr(
        torch, "empty_like", lambda one, **options: torch.full(one.shape, float("nan"), dtype=one.dtype)
    )
    load = safetensors.torch.load_file
    # views into a mapped file are aligned to 8 bytes, and matrix products then differ in the last bits
    monkeypatch.setattr(
        safetensors.torch,
        "load_file",
        lambda *given, **more: {k: v.clone() for k, v in load(*given, **more).items()},
    )


def offload(model: Transformer3DModel, folder: Path, kind: dict[str, Any]) -> None:
    apply_group_offloading(
        model, torch.device("cpu"), torch.device("cpu"), offload_to_disk_path=str(folder), **kind
    )


def sample(model: Transformer3DModel, lengths: tuple[int, int] = (1, 3)) -> Tensor:
    """Two steps with guidance, a step cache that only looks, and texts that are folded (1 and 3 tokens) or not."""
    generator = torch.Generator().manual_seed(1)
    text, latents = (
        torch.randn(2, 6, 24, generator=generator),
        torch.randn(1, 4, 3, 4, 6, generator=generator),
    )
    mask = torch.tensor([[int(i < length) for i in range(6)] for length in lengths])
    seen = []

    def cache(signal: Tensor, x: Tensor, blocks: Any) -> Tensor:
        seen.append(signal.sum())
        return blocks(x)

    with torch.no_grad():
        prepared = model.prepare(text, mask, [900, 400])
        found = [model(latents, step, prepared=prepared, step_cache=cache).sample for step in (900, 400)]
    return torch.cat([*found, torch.stack(seen).expand(2, 8, 3, 4, 2).contiguous().repeat(1, 1, 1, 1, 3)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(1, 3), (6, 6)])
def test_offloaded_is_exact(
    make_model: Any, tmp_path: Path, poisoned: None, kind: dict[str, Any], lengths: tuple[int, int]
) -> None:
    model = make_model()
    wanted = sample(model, lengths)
    offload(model, tmp_path, kind)
    assert torch.equal(sample(model, lengths), wanted)
    assert all(p.isnan().all() for p in model.transformer_blocks[0].attn1.parameters())  # it did wait


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]])
def test_reads_without_the_hooks_are_caught(
    make_model: Any,
    tmp_path: Path,
    poisoned: None,
    monkeypatch: pytest.MonkeyPatch,
    kind: dict[str, Any],
    place: str,
) -> None:
    """The twin: with one of the places broken the result is NaN."""
    is_leaf = kind["offload_type"] == "leaf_level"
    if (place == "text_groups") != is_leaf and place != "model":
        pytest.skip("the block's hook covers its linears, and a linear's hook is its own")
    model = make_model()
    offload(model, tmp_path, kind)
    monkeypatch.setattr(f"ea_dit.network.{place}.weights_of", lambda module: nullcontext())
    assert sample(model).isnan().any()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_stream", [False, True])
def test_offloaded_is_exact_on_a_gpu(make_model: Any, kind: dict[str, Any], use_stream: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    wanted = sample(make_model().cuda())
    model = make_model()
    apply_group_offloading(model, torch.device("cuda"), torch.device("cpu"), use_stream=use_stream, **kind)
    assert torch.equal(sample(model), wanted)
