from __future__ import annotations

from typing import Any

import pytest

from ea_lora.roles import TensorName, parse_name, relative_of_lora


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lora_unet__proj_out.lora_down.weight", ("lora_unet__proj_out", "down")),
        ("lora_unet__proj_out.lora_up.weight", ("lora_unet__proj_out", "up")),
        ("lora_unet__proj_out.alpha", ("lora_unet__proj_out", "alpha")),
        ("diffusion_model.a.0.b.alpha", ("diffusion_model.a.0.b", "alpha")),
        ("a.0.lora_A.weight", ("a.0", "down")),
        ("a.0.lora_B.style.weight", ("a.0", "up", "style")),
        ("a.0.lora_a.weight", ("a.0", "down")),
        ("a.0.lora_B", ("a.0", "up")),
        ("a.lora.down.weight", ("a", "down")),
        ("a.lora_linear_layer.up.weight", ("a", "up")),
        ("a.processor.to_q_lora.down.weight", ("a.processor.to_q", "down")),
        ("a.processor.to_q_lora.alpha", ("a.processor.to_q", "alpha")),
        ("lora.a.lora.up.weight", ("lora.a", "up")),
        ("a.lora_B.bias", ("a", "extra")),
        ("a.lora_B.style.bias", ("a", "extra", "style")),
        ("a.diff_b", ("a", "extra")),
        ("a.bias", ("a", "extra")),
        ("lora_unet__proj_out.weight", None),
        (".alpha", None),
        ("alpha", None),
        (".lora_down.weight", None),
    ],
)
def test_names(key: str, expected: Any) -> None:
    assert parse_name(key) == (None if expected is None else TensorName(*expected))


@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("a.dora_scale", "DoRA"),
        ("a.lora_magnitude_vector", "DoRA"),
        ("a.lora_magnitude_vector.style.weight", "DoRA"),
        ("a.hada_w1_a", "LoHa"),
        ("a.lokr_w2", "LoKr"),
        ("a.oft_blocks", "OFT"),
        ("a.lora_mid.weight", "LoCon with a Tucker core"),
        ("a.lora_embedding_A.style", "LoRA of an embedding"),
        ("a.base_layer.weight", "a weight of the base itself"),
        ("a.set_weight", "a weight to replace the model's"),
        ("a.lora_A.weight", None),
        ("lora_unet__a.lora_down.weight", None),
        ("blocks.loft_proj.lora_A.weight", None),
        ("blocks.magnitude.lora_A.weight", None),
    ],
)
def test_relatives_are_named(key: str, method: str | None) -> None:
    assert relative_of_lora(key) == method
