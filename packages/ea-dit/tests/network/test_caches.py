"""diffusers' caches: exact where they skip nothing, right with the U-ViT skips where they skip, or refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from torch import Tensor

from ea_dit import Transformer3DModel
from ea_dit.network.blocks import TransformerBlock

STEPS = (900.0, 870.0, 840.0, 810.0, 780.0, 750.0)
MAG = {"num_inference_steps": len(STEPS), "mag_ratios": [1.0] * len(STEPS)}


def sample(model: Transformer3DModel, videos: int = 1) -> list[Tensor]:
    """The outputs of some steps with guidance, latents fixed but for a little noise."""
    generator = torch.Generator().manual_seed(1)
    text, mask = (
        torch.randn(2 * videos, 5, 24, generator=generator),
        torch.ones(2 * videos, 5, dtype=torch.long),
    )
    latents = torch.randn(videos, 4, 3, 4, 6, generator=generator)
    found = []
    with torch.no_grad():
        prepared = model.prepare(text, mask, STEPS)
        for step in STEPS:
            with model.cache_context("all"):
                found.append(model(latents, step, prepared=prepared).sample)
            latents = latents + 0.01 * torch.randn(latents.shape, generator=generator)
    return found


class Counted:
    """Calls of each block's own forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        own = TransformerBlock.forward

        @functools.wraps(own)  # diffusers reads the arguments' names
        def counted(block: TransformerBlock, *args: Any, **kwargs: Any) -> Tensor:
            self.calls += 1
            return own(block, *args, **kwargs)

        monkeypatch.setattr(TransformerBlock, "forward", counted)


@pytest.mark.parametrize("videos", [1, 2])
def test_first_block_cache_is_exact_at_threshold_0(make_model: Any, videos: int) -> None:
    model = make_model()
    wanted = sample(model, videos)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert all(torch.equal(one, other) for one, other in zip(sample(model, videos), wanted, strict=True))
    model.disable_cache()
    assert all(torch.equal(one, other) for one, other in zip(sample(model, videos), wanted, strict=True))


@pytest.mark.parametrize(
    "config",
    [FirstBlockCacheConfig(threshold=10.0), MagCacheConfig(threshold=10.0, retention_ratio=0.0, **MAG)],
)
@pytest.mark.parametrize("videos", [1, 2])
def test_skipped_blocks_leave_their_skips_out(
    make_model: Any, monkeypatch: pytest.MonkeyPatch, config: Any, videos: int
) -> None:
    model = make_model()
    wanted = sample(model, videos)
    first: list[Tensor] = []
    last: list[Tensor] = []
    for index, outputs in ((0, first), (-1, last)):
        model.transformer_blocks[index].register_forward_hook(lambda *call, to=outputs: to.append(call[-1]))
    counted = Counted(monkeypatch)
    model.enable_cache(config)
    found = sample(model, videos)
    own = counted.calls
    assert own < len(STEPS) * 4  # the twin: a cache that does nothing runs all blocks
    assert torch.equal(found[0], wanted[0])
    # a skipped pass ends with what the cache gives: the first block's output, and nothing added to it on the way
    assert torch.equal(last[1], first[1])
    assert 0 < (found[1] - wanted[1]).norm() / wanted[1].norm() < 0.1


def test_skips_outside_the_blocks_would_be_wrong(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the test above: with the skips between the blocks the same cache is far off."""
    model = make_model()
    wanted = sample(model)
    monkeypatch.setattr("ea_dit.network.model.skips_blocks", lambda config: False)
    model.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    assert (sample(model)[1] - wanted[1]).norm() / wanted[1].norm() > 0.1


@pytest.mark.parametrize("options", [{}, {"use_lite_mode": True}])
def test_taylor_seer_predicts_and_computes(make_model: Any, options: dict[str, Any]) -> None:
    model = make_model()
    wanted = sample(model)
    model.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=3, disable_cache_before_step=3, taylor_factors_dtype=torch.float32, **options
        )
    )
    found = sample(model)
    errors = [float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True)]
    assert errors[:3] == [0, 0, 0]
    assert 0 < errors[3] < 0.3  # the twin: 0 if nothing was hooked


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PyramidAttentionBroadcastConfig(), r"PyramidAttentionBroadcastConfig does nothing or is wrong"),
        (TaylorSeerCacheConfig(cache_identifiers=["nothing"]), r"match no module"),
        (
            TaylorSeerCacheConfig(cache_identifiers=[r"transformer_blocks\.\d+\.attn2"]),
            r"attn2, which is not called",
        ),
        (TaylorSeerCacheConfig(skip_predict_identifiers=["proj_out"]), r"zeros that would reach"),
    ],
)
def test_what_would_do_nothing_is_refused(make_model: Any, config: Any, message: str) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model.enable_cache(config)
    assert not model.is_cache_enabled


def test_one_cache_at_a_time(make_model: Any, make_inputs: Any) -> None:
    model = make_model()
    model.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="FirstBlockCacheConfig is on already"):
        model.enable_cache(MagCacheConfig(**MAG))
    with pytest.raises(ValueError, match="`step_cache` and `enable_cache`"):
        model(**make_inputs(), step_cache=lambda signal, x, blocks: blocks(x))
    with pytest.raises(ValueError, match="only one"):
        make_model(num_layers=1).enable_cache(FirstBlockCacheConfig())
