"""Prompts prepared once give the same result as text passed at each step, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ea_dit import Transformer3DModel

EXACT = 1e-12
GRID = {
    "motion_module_type": "VanillaGrid",
    "motion_module_kwargs": {
        "num_attention_heads": 4,
        "temporal_position_encoding_max_len": 16,
        "block_size": 2,
    },
}


def relative(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).norm() / wanted.norm())


def rows(lengths: list[int], tokens: int = 6) -> tuple[Tensor, Tensor]:
    """Text (R, 6, 24) and mask (R, 6) for rows of these token counts."""
    mask = torch.tensor([[int(i < n) for i in range(tokens)] for n in lengths])
    return torch.randn(len(lengths), tokens, 24, dtype=torch.float64), mask


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(1, 4, 3, 4, 8, dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, GRID, {"caption_channels": None, "cross_attention_dim": 24}])
@pytest.mark.parametrize("lengths", [[1, 4], [4, 4], [6, 6], [0, 3], [2]])
@torch.no_grad()
def test_sampling_equals_single_passes(
    make_model: Any, latents: Tensor, lengths: list[int], options: dict[str, Any]
) -> None:
    model = make_model(**options).double()
    text, mask = rows(lengths)
    prepared = model.prepare(text, mask, [981, 500, 3])
    for step in (981, 3):
        wanted = model(latents.repeat(len(lengths), 1, 1, 1, 1), step, text, mask).sample
        assert relative(model(latents, step, prepared=prepared).sample, wanted) < EXACT
        assert relative(model(latents, torch.tensor([step]), prepared=prepared).sample, wanted) < EXACT


@torch.no_grad()
def test_rows_of_a_batch_keep_their_latents(make_model: Any) -> None:
    model = make_model().double()
    latents = torch.randn(2, 4, 3, 4, 4, dtype=torch.float64)
    text, mask = rows([1, 1, 3, 5])
    wanted = model(torch.cat([latents, latents]), 40, text, mask).sample
    assert relative(model(latents, 40, prepared=model.prepare(text, mask, [40])).sample, wanted) < EXACT


@torch.no_grad()
def test_masks_of_other_numbers_stay_a_bias(make_model: Any, latents: Tensor) -> None:
    model = make_model().double()
    text, mask = rows([3, 5])
    for other in (mask * 0.9995, (mask.double() - 1)[:, None] * 3):
        prepared = model.prepare(text, other, [40])
        assert prepared.bias is not None
        wanted = model(latents.repeat(2, 1, 1, 1, 1), 40, text, other).sample
        assert relative(model(latents, 40, prepared=prepared).sample, wanted) < EXACT


@torch.no_grad()
def test_size_conditions_are_prepared_too(make_model: Any, latents: Tensor) -> None:
    model = make_model(sample_size=128, num_attention_heads=12, cross_attention_dim=96).double()
    text, mask = rows([2, 5])
    sizes = {"resolution": torch.tensor([[32.0, 64.0]] * 2), "aspect_ratio": torch.tensor([[0.5]] * 2)}
    wanted = model(latents.repeat(2, 1, 1, 1, 1), 7, text, mask, sizes).sample
    prepared = model.prepare(text, mask, [7], sizes)
    assert relative(model(latents, 7, prepared=prepared).sample, wanted) < EXACT
    sizes["aspect_ratio"] = torch.tensor([[0.5], [1.0]])
    with pytest.raises(ValueError, match="must be equal in all rows"):
        model.prepare(text, mask, [7], sizes)


@torch.no_grad()
def test_timesteps_are_not_rounded_to_16_bits(make_model: Any) -> None:
    """981 is no number of bfloat16, 980 is the one below."""
    model = make_model().bfloat16()
    text, mask = rows([3])
    for step in (981, 980):
        found = model.prepare(text.bfloat16(), mask, [step]).at(step)
        wanted = model.adaln_single(torch.tensor([float(step)]), None, None, torch.bfloat16)
        assert all(map(torch.equal, found, wanted))
    both = model.prepare(text.bfloat16(), mask, [981, 980])
    assert not torch.equal(both.at(981)[0], both.at(980)[0])


@torch.no_grad()
def test_what_guidance_shares_is_computed_once(make_model: Any, latents: Tensor) -> None:
    model: Transformer3DModel = make_model()
    model.float()
    seen: dict[str, int] = {}
    for name in ("attn1", "attn_temporal", "attn2"):
        for index in (0, 1):

            def look(module: Any, args: Any, name: str = name, index: int = index) -> None:
                seen[f"{name} {index}"] = args[0].shape[0]

            getattr(model.blocks[index], name).register_forward_pre_hook(look)
    text, mask = rows([1, 4])
    model(latents.float(), 5, prepared=model.prepare(text.float(), mask, [5]))
    assert seen == {"attn1 0": 3, "attn_temporal 0": 1, "attn1 1": 6, "attn_temporal 1": 2}  # frames, videos


@torch.no_grad()
def test_a_step_cache_is_asked_in_place_of_the_blocks(make_model: Any, latents: Tensor) -> None:
    model = make_model().double()
    text, mask = rows([1, 4])
    prepared = model.prepare(text, mask, [5])
    wanted = model(latents, 5, prepared=prepared).sample
    shapes = []

    def cache(signal: Tensor, x: Tensor, blocks: Any) -> Tensor:
        out = blocks(x)
        shapes.extend([signal.shape, x.shape, out.shape])
        return out

    assert torch.equal(model(latents, 5, prepared=prepared, step_cache=cache).sample, wanted)
    assert [shape[0] for shape in shapes] == [1, 1, 2]

    def nothing(signal: Tensor, x: Tensor, blocks: Any) -> Tensor:
        return x.repeat(2, 1, 1)

    assert not torch.allclose(model(latents, 5, prepared=prepared, step_cache=nothing).sample, wanted)


@torch.no_grad()
def test_what_does_not_fit_is_refused(make_model: Any, latents: Tensor) -> None:
    model = make_model().double()
    text, mask = rows([1, 4, 2])
    prepared = model.prepare(text, mask, [5])
    with pytest.raises(ValueError, match="`timestep` 6 was not prepared"):
        model(latents, 6, prepared=prepared)
    with pytest.raises(ValueError, match="3 rows of text, which is no multiple of 2"):
        model(latents.repeat(2, 1, 1, 1, 1), 5, prepared=prepared)
    with pytest.raises(ValueError, match="`encoder_attention_mask` must have shape"):
        model.prepare(text, mask[:2], [5])
