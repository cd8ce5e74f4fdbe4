"""Layouts: any layers come back from each of them bit-exact, and a file says which one it is in."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_lora.io import read_lora, write_lora
from ea_lora.keys import LAYOUTS, Layout, Part, flatten
from ea_lora.layer import Layer
from ea_lora.layouts import (
    ALPHA_KEY,
    adapter_config,
    alpha_record,
    check_layout,
    diffusers_metadata,
    layout_of,
    place_in,
    read_alpha_record,
    tensor_names,
)
from ea_lora.roles import parse_name
from ea_runtime.errors import UserError

PIECES = st.sampled_from(["blocks", "attn1", "to_q", "net_0", "proj_out", "0", "12", "_own", "A", "lorax"])
DENOISER = st.lists(PIECES, min_size=1, max_size=4).map(".".join)
TEXT = st.builds("encoder.block.{}.layer.{}.SelfAttention.q".format, st.integers(0, 30), st.integers(0, 2))
PLACES = st.tuples(st.just("denoiser"), DENOISER) | st.tuples(st.just("text"), TEXT)


@settings(derandomize=True, deadline=None)
@given(layout=st.sampled_from(LAYOUTS), places=st.lists(PLACES, min_size=1, max_size=3))
def test_names_say_their_layout_network_path_and_role(layout: Layout, places: list[tuple[Part, str]]) -> None:
    names = [name for part, path in places for name in tensor_names(layout, part, path) if name is not None]
    assert layout_of(names) == layout
    assert layout_of([*names, "other.lora_A.weight"]) == "other"
    for part, path in places:
        for role, name in zip(("down", "up", "alpha"), tensor_names(layout, part, path), strict=True):
            if name is None:
                assert (layout in ("diffusers", "peft"), role) == (True, "alpha")
                continue
            parsed = parse_name(name)
            assert parsed is not None
            assert parsed.role == role
            shown = flatten(path) if layout == "kohya" else path
            assert place_in(layout, parsed.layer) == (part, shown)


def layers_of(drawn: Any) -> list[Layer]:
    layers = []
    for number, ((part, path), rank, alpha, dtype) in enumerate(drawn):
        generator = torch.Generator().manual_seed(number)
        down, up = (torch.randn(*shape, generator=generator) for shape in ((rank, 3), (4, rank)))
        kept = None if alpha is None else torch.tensor(alpha, dtype=dtype)
        layers.append(Layer(path, part, path, down.to(torch.bfloat16), up.to(torch.bfloat16), kept))
    return layers


ALPHAS = st.sampled_from([None, 0.5, 1.0, 3.0, 1.0 / 3.0])
ALPHA_TYPES = st.sampled_from([torch.float32, torch.float16])


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    layout=st.sampled_from(LAYOUTS),
    drawn=st.lists(
        st.tuples(PLACES, st.integers(1, 3), ALPHAS, ALPHA_TYPES),
        min_size=1,
        max_size=4,
        unique_by=lambda one: flatten(one[0][1]),
    ),
)
def test_any_layers_come_back_from_any_layout(
    tmp_path_factory: pytest.TempPathFactory, layout: Layout, drawn: Any
) -> None:
    layers = layers_of(drawn)
    if layout == "peft" and all(layer.part == "text" for layer in layers):
        return  # a folder of peft's without the denoiser's adapter is no LoRA
    path = tmp_path_factory.mktemp("layout") / ("peft" if layout == "peft" else "a.safetensors")
    write_lora(path, layers, {"ss_note": "kept"}, layout)
    file = read_lora(path)
    assert file.layout == layout
    assert file.metadata["ss_note"] == "kept"
    again = {(layer.part, layer.path): layer for layer in file.layers}
    assert len(again) == len(layers)
    for layer in layers:
        found = again[layer.part, flatten(layer.path) if layout == "kohya" else layer.path]
        assert torch.equal(found.down, layer.down)
        assert torch.equal(found.up, layer.up)
        assert found.scale == layer.scale
        if layer.alpha is None:
            assert found.alpha is None
        else:
            assert found.alpha is not None
            assert found.alpha.dtype == layer.alpha.dtype
            assert torch.equal(found.alpha, layer.alpha)


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        ([], "other"),
        (["lora_unet__a.lora_down.weight"], "kohya"),
        (["lora_te_a.alpha"], "kohya"),
        (["lora_unet_a.lora_down.weight"], "other"),
        (["lora_unet__a.lora_A.weight"], "other"),
        (["lora_unet__a.lora_down.weight", "lora_unet__a.bias"], "other"),
        (["diffusion_model.a.lora_up.weight"], "comfyui"),
        (["text_encoders.t5xxl.transformer.a.lora_up.weight"], "comfyui"),
        (["diffusion_model.a.lora_A.weight"], "other"),
        (["transformer.a.lora_A.weight", "text_encoder.a.lora_B.weight"], "diffusers"),
        (["transformer.a.lora_A.weight", "base_model.model.a.lora_B.weight"], "other"),
        (["base_model.model.a.lora_B.weight"], "peft"),
    ],
)
def test_every_name_must_be_of_the_layout(names: list[str], layout: str) -> None:
    assert layout_of(names) == layout
    assert layout_of(iter(names)) == layout


@pytest.mark.parametrize(
    ("layout", "name", "place"),
    [
        ("kohya", "lora_te_encoder_0", ("text", "encoder_0")),
        ("comfyui", "text_encoders.t5xxl.transformer.encoder.0", ("text", "encoder.0")),
        ("diffusers", "text_encoder.encoder.0", ("text", "encoder.0")),
        ("peft", "base_model.model.blocks.0", ("denoiser", "blocks.0")),
        ("peft", "base_model.model.text_encoder.blocks.0", ("text", "text_encoder.blocks.0")),
        ("other", "my.base_model.model.blocks.0", ("denoiser", "blocks.0")),
        ("other", "my.blocks.0", ("denoiser", "my.blocks.0")),
        ("other", "text_encoder.blocks.0", ("text", "text_encoder.blocks.0")),
    ],
)
def test_the_place_that_a_name_shows(layout: Any, name: str, place: tuple[str, str]) -> None:
    assert place_in(layout, name) == place


def test_a_layout_is_one_of_four() -> None:
    assert [check_layout(layout) for layout in LAYOUTS] == list(LAYOUTS)
    with pytest.raises(
        UserError, match=r"`to` must be one of kohya, .*, got 'difusers'; did you mean 'diffusers'\?"
    ):
        check_layout("difusers")


def layer(path: str, rank: int, alpha: float | None, part: Part = "denoiser") -> Layer:
    kept = None if alpha is None else torch.tensor(alpha)
    return Layer(path, part, path, torch.ones(rank, 2), torch.ones(2, rank), kept)


def test_a_config_has_the_commonest_rank_and_alpha_and_exact_paths() -> None:
    layers = [layer("b.to_q", 2, 1.0), layer("a.0", 2, 1.0), layer("c", 4, 2.5), layer("d", 3, 1.0)]
    assert adapter_config(iter(layers)) == {
        "r": 2,
        "lora_alpha": 1,
        "rank_pattern": {"^c": 4, "^d": 3},
        "alpha_pattern": {"^c": 2.5},
        "target_modules": r"(a\.0|b\.to_q|c|d)",
        "lora_dropout": 0.0,
        "bias": "none",
    }
    assert type(adapter_config(layers)["lora_alpha"]) is int
    assert adapter_config([layer("a", 3, None)])["lora_alpha"] == 3


def test_the_header_of_diffusers_has_a_config_for_each_network() -> None:
    both = json.loads(diffusers_metadata(iter([layer("a", 2, 1.0), layer("b", 3, 1.0, "text")])))
    assert {key: value for key, value in both.items() if key.endswith(".r")} == {
        "transformer.r": 2,
        "text_encoder.r": 3,
    }
    assert both["text_encoder.target_modules"] == "(b)"
    one = json.loads(diffusers_metadata([layer("a", 2, 1.0)]))
    assert {key.partition(".")[0] for key in one} == {"transformer"}
    assert diffusers_metadata([layer("a", 2, 1.0)]) == json.dumps(one, sort_keys=True)


def test_the_dtype_of_each_alpha_is_recorded() -> None:
    half = Layer("c", "text", "c", torch.ones(2, 2), torch.ones(2, 2), torch.tensor(1, dtype=torch.float16))
    layers = [layer("a", 2, 1.0), layer("b", 2, None), half, layer("d", 2, 1.0)]
    record = alpha_record(iter(layers))
    assert json.loads(record) == {"dtype": "float32", "others": {"denoiser:b": "none", "text:c": "float16"}}
    assert read_alpha_record({ALPHA_KEY: record}) == json.loads(record)
    assert json.loads(alpha_record(layers[:1])) == {"dtype": "float32"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{]",
        "[" * 100_000,
        "[]",
        "7",
        "{}",
        '{"dtype": 7}',
        '{"dtype": "float32", "others": []}',
        '{"others": {}}',
    ],
)
def test_a_record_that_is_not_ours_is_no_record(text: str) -> None:
    assert read_alpha_record({ALPHA_KEY: text}) == {}
    assert read_alpha_record({}) == {}
