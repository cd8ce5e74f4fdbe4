"""V3's known frames and CLIP's picture: prepared once they equal single passes, in float64; errors take one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ea_dit import Transformer3DModel, initialize_weights
from ea_dit.network.config import TransformerConfig

MOTION = {"num_attention_heads": 4, "temporal_position_encoding_max_len": 16}
V3: dict[str, Any] = {
    "in_channels": 12,
    "basic_block_type": "global_motionmodule",
    "motion_module_kwargs": None,
    "motion_module_kwargs_even": MOTION,
    "motion_module_kwargs_odd": {**MOTION, "attention_block_types": ["Temporal_Self", "Global_Self"]},
}


@pytest.fixture
def model(make_model: Any) -> Transformer3DModel:
    return make_model(**V3).double()


def given(rows: int, lengths: list[int], pictures: list[int] | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "encoder_hidden_states": torch.randn(rows, 6, 24, dtype=torch.float64),
        "encoder_attention_mask": torch.tensor([[int(i < n) for i in range(6)] for n in lengths]),
        "clip_encoder_hidden_states": torch.randn(rows, 768, dtype=torch.float64),
    }
    if pictures is not None:
        found["clip_attention_mask"] = torch.tensor(pictures)[:, None].expand(rows, 8)
    return found


@pytest.mark.parametrize(
    ("lengths", "pictures"),
    [([1, 4], [0, 1]), ([3, 3], [1, 1]), ([0, 2], [1, 0]), ([0, 0], [0, 0]), ([2, 6], None)],
)
@torch.no_grad()
def test_sampling_equals_single_passes(
    model: Transformer3DModel, lengths: list[int], pictures: list[int] | None
) -> None:
    latents = torch.randn(1, 4, 3, 4, 8, dtype=torch.float64)
    known = torch.randn(1, 8, 3, 4, 8, dtype=torch.float64)
    text = given(2, lengths, pictures)
    wanted = model(
        latents.repeat(2, 1, 1, 1, 1), 500, inpaint_latents=known.repeat(2, 1, 1, 1, 1), **text
    ).sample
    clip = (text["clip_encoder_hidden_states"], text.get("clip_attention_mask"))
    prepared = model.prepare(
        text["encoder_hidden_states"], text["encoder_attention_mask"], [500], None, *clip
    )
    found = model(latents, 500, prepared=prepared, inpaint_latents=known).sample
    assert float((found - wanted).norm() / wanted.norm()) < 1e-12


@torch.no_grad()
def test_known_frames_and_picture_count(model: Transformer3DModel) -> None:
    latents = torch.randn(1, 4, 3, 4, 8, dtype=torch.float64)
    known = torch.zeros(1, 8, 3, 4, 8, dtype=torch.float64)
    text = given(1, [4], [1])
    first = model(latents, 500, inpaint_latents=known, **text).sample
    assert not torch.allclose(first, model(latents, 500, inpaint_latents=known + 1, **text).sample)
    hidden = {**text, "clip_attention_mask": torch.zeros(1, 8)}
    without = {name: value for name, value in text.items() if "clip" not in name}
    masked = model(latents, 500, inpaint_latents=known, **hidden).sample
    assert not torch.allclose(first, masked)
    assert torch.allclose(masked, model(latents, 500, inpaint_latents=known, **without).sample)


@torch.no_grad()
def test_every_token_of_a_video_reaches_every_other(model: Transformer3DModel) -> None:
    latents = torch.randn(1, 4, 3, 4, 8, dtype=torch.float64)
    known = torch.zeros(1, 8, 3, 4, 8, dtype=torch.float64)
    changed = latents.clone()
    changed[..., 0, 0, 0] += 1
    text = given(1, [4], [1])
    attention = model.blocks[1].attn_temporal.temporal_transformer.transformer_blocks[0].attention_blocks
    assert [one.is_global for one in attention] == [False, True]
    seen: list[torch.Tensor] = []
    attention[1].register_forward_hook(lambda module, args, out: seen.append(out))
    for one in (latents, changed):
        model(one, 500, inpaint_latents=known, **text)
    assert bool((seen[0] != seen[1]).any(dim=-1).all())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inpaint_latents": None}, "`inpaint_latents` must have shape (1, 8, 3, 4, 8), got None"),
        ({"inpaint_latents": torch.zeros(1, 4, 3, 4, 8)}, "got shape (1, 4, 3, 4, 8)"),
        (
            {"clip_encoder_hidden_states": torch.zeros(1, 512)},
            "`clip_encoder_hidden_states` must have shape (1, 768)",
        ),
        ({"clip_attention_mask": torch.zeros(1, 4)}, "`clip_attention_mask` must have shape (1, 8)"),
        ({"hidden_states": torch.zeros(1, 12, 3, 4, 8)}, "`hidden_states` must have 4 channels, got 12"),
    ],
)
def test_errors_take_one_line(make_model: Any, changes: dict[str, Any], words: str) -> None:
    inputs = {
        "hidden_states": torch.zeros(1, 4, 3, 4, 8),
        "timestep": 5,
        "encoder_hidden_states": torch.zeros(1, 6, 24),
        "inpaint_latents": torch.zeros(1, 8, 3, 4, 8),
        "clip_encoder_hidden_states": torch.zeros(1, 768),
    }
    with pytest.raises(ValueError) as error:
        make_model(**V3)(**{**inputs, **changes})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["inpaint_latents", "clip_encoder_hidden_states"])
def test_a_model_of_v2_takes_no_known_frames(make_model: Any, make_inputs: Any, name: str) -> None:
    with pytest.raises(ValueError, match=r"for models (of V3|that take CLIP)"):
        make_model()(**make_inputs(), **{name: torch.zeros(2, 768)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"motion_module_kwargs_odd": None}, "`motion_module_kwargs_odd` must be given"),
        ({"motion_module_kwargs_even": {"block_size": 0}}, "`motion_module_kwargs_even.block_size` must be"),
        ({"motion_module_kwargs_odd": {"num_attention_heads": 7}}, "`motion_module_kwargs_odd.num_attention"),
        ({"motion_module_kwargs_odd": {**MOTION, "block_size": 2}}, "`block_size` must be the same"),
        ({"qk_norm": True}, "`qk_norm` must be False"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        TransformerConfig.from_mapping({**V3, **changes})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_limits_are_those_of_the_shorter_table() -> None:
    odd = {**MOTION, "temporal_position_encoding_max_len": 8}
    config = TransformerConfig.from_mapping({**V3, "motion_module_kwargs_odd": odd})
    assert config.max_frames == 8
    assert (config.latent_channels, config.has_known_frames) == (4, True)
    assert [config.motion_of(index).attention_block_types[1] for index in range(3)] == ["Temporal_Self"] * 3


def test_a_fresh_model_starts_as_pixart_does(make_model: Any) -> None:
    model = make_model(**V3, randomized=False)
    initialize_weights(model)
    assert float(model.clip_projection.linear_1.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
