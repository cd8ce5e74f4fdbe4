from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from ea_lora.keys import find_targets, is_target, relative_of_lora, split_key, split_name


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lora_unet__proj_out.lora_down.weight", ("lora_unet__proj_out", "down")),
        ("lora_unet__proj_out.lora_up.weight", ("lora_unet__proj_out", "up")),
        ("lora_unet__proj_out.alpha", ("lora_unet__proj_out", "alpha")),
        ("diffusion_model.a.0.b.alpha", ("diffusion_model.a.0.b", "alpha")),
        ("lora_unet__proj_out.weight", None),
        (".alpha", None),
        ("alpha", None),
    ],
)
def test_split_key(key: str, expected: Any) -> None:
    assert split_key(key) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora_unet__transformer_blocks_0_attn1_to_q", ("denoiser", "transformer_blocks_0_attn1_to_q")),
        ("lora_unet_mid_block", ("denoiser", "mid_block")),
        ("lora_te_encoder_block_0", ("text", "encoder_block_0")),
        ("lora_te2_text_model", ("text", "text_model")),
        ("diffusion_model.blocks.0", ("denoiser", "blocks.0")),
        ("transformer.transformer_blocks.0", ("denoiser", "transformer_blocks.0")),
        ("text_encoder.encoder.block.0", ("text", "encoder.block.0")),
        ("blocks.0", ("denoiser", "blocks.0")),
    ],
)
def test_split_name(name: str, expected: Any) -> None:
    assert split_name(name) == expected


def test_relatives_are_named() -> None:
    assert relative_of_lora("a.dora_scale") == "DoRA"
    assert relative_of_lora("a.hada_w1_a") == "LoHa"
    assert relative_of_lora("a.lora_A.weight") is None
    assert relative_of_lora("lora_unet__a.lora_down.weight") is None


def test_targets_of_a_network(small: Any) -> None:
    denoiser = small.make_pipe().denoiser
    expected = {"proj_in", "mix", "proj_out"}
    expected |= {f"blocks.{i}.{name}" for i in (0, 1) for name in ("to_q", "net.0", "net.1")}
    assert set(find_targets(denoiser)) == expected  # the 3x3 convolution and the norm are none
    assert set(find_targets(denoiser, include=["*.to_[qkv]"])) == {"blocks.0.to_q", "blocks.1.to_q"}
    assert set(find_targets(denoiser, exclude=["blocks.*", "mix"])) == {"proj_in", "proj_out"}


def test_modules_whose_hooks_would_be_dead_are_no_targets() -> None:
    # multi-head attention reads out_proj.weight and never calls the module
    assert find_targets(nn.MultiheadAttention(8, 2)) == {}
    assert is_target(nn.Conv3d(4, 4, 1))
    assert not is_target(nn.Conv2d(4, 4, 1, groups=2))
    assert not is_target(nn.Conv2d(4, 4, (1, 3)))
