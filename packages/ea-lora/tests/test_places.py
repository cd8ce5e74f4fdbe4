"""Names of files and the modules that they mean: one prefix for the whole file, found by structure."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ea_lora.keys import flatten
from ea_lora.places import Modules, Places, find_places, is_text

PATHS = [
    *(f"transformer_blocks.{n}.attn1.{name}" for n in range(3) for name in ("to_q", "to_out.0")),
    *(f"transformer_blocks.{n}.ff.net.0.proj" for n in range(3)),
    "proj_out",
]
TEXT = [f"encoder.block.{n}.layer.0.SelfAttention.q" for n in range(2)]


def places_of(names: Sequence[str], text: Sequence[str] = TEXT) -> Places:
    networks = {"denoiser": Modules(PATHS), "text": Modules(text)}
    return find_places(names, [is_text(name) for name in names], networks)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        *("transformer.", "diffusion_model.", "model.diffusion_model.", "base_model.model.", "unet."),
        *("module.", "model.", "pipe.dit.", "state_dict.model.module.", "a.b.c.d.e.", "x0."),
    ],
)
def test_any_prefix_of_dotted_names(prefix: str) -> None:
    found = places_of([prefix + path for path in PATHS])
    assert found.prefixes == {"denoiser": prefix}
    assert [found.found[number] for number in range(len(PATHS))] == [("denoiser", (path,)) for path in PATHS]
    assert found.also is None


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "lora_unet_",
        "lora_unet__",
        "lora_transformer_",
        "lycoris_",
        "lora_unet__orig_mod_",
        "module.lora_unet_",
    ],
)
def test_any_prefix_of_flat_names(prefix: str) -> None:
    found = places_of([prefix + flatten(path) for path in PATHS])
    assert found.prefixes == {"denoiser": prefix}
    assert [found.found[number][1] for number in range(len(PATHS))] == [(path,) for path in PATHS]


@pytest.mark.parametrize(
    "prefix",
    ["lora_te_", "lora_te3_", "text_encoder.", "text_encoder_2.", "text_encoders.t5xxl.transformer.", ""],
)
def test_the_text_encoder_has_its_own(prefix: str) -> None:
    flat = prefix.startswith("lora")
    names = [f"lora_unet_{flatten(path)}" for path in PATHS]
    names += [prefix + (flatten(path) if flat else path) for path in TEXT]
    found = places_of(names)
    assert found.prefixes == {"denoiser": "lora_unet_", "text": prefix}
    assert [found.found[len(PATHS) + number] for number in range(2)] == [("text", (path,)) for path in TEXT]


def test_one_prefix_of_peft_for_both_networks() -> None:
    found = places_of([f"base_model.model.{path}" for path in (*PATHS, *TEXT)])
    assert found.prefixes == dict.fromkeys(("denoiser", "text"), "base_model.model.")
    assert len(found.found) == len(PATHS) + len(TEXT)


def test_wrappers_inside_a_path_are_passed_over() -> None:
    names = [
        "_fsdp_wrapped_module." + path.replace("attn1.", "_checkpoint_wrapped_module.attn1._orig_mod.")
        for path in PATHS
    ]
    assert len(places_of(names).found) == len(PATHS)
    # but not a name that begins with `_` and is the model's own
    modules = Modules(["_blocks.0.to_q", "blocks.0.to_q"])
    found = find_places(["model._blocks.0.to_q"], [False], {"denoiser": modules})
    assert found.found[0] == ("denoiser", ("_blocks.0.to_q",))


def test_what_a_converter_left_at_the_end() -> None:
    found = places_of([f"lora_unet_{flatten(path)}_" for path in PATHS])
    assert [found.found[number][1] for number in range(len(PATHS))] == [(path,) for path in PATHS]


def test_diffusers_processors_name_the_list_of_an_output() -> None:
    names = [
        f"transformer_blocks.{n}.attn1.processor.{name}" for n in range(3) for name in ("to_q", "to_out")
    ]
    found = places_of(names)
    assert [found.found[number][1][0] for number in range(len(names))] == PATHS[:6]


def test_layers_that_the_model_lacks_stay_without_a_place() -> None:
    names = [f"lora_unet_{flatten(path)}" for path in PATHS]
    # `proj_out` is also the end of a path that the model does not have
    more = [
        "lora_unet_gone",
        "lora_unet_transformer_blocks_0_attn_temporal_proj_out",
        "lora_te1_text_model_0",
    ]
    found = places_of([*names, *more])
    assert len(found.found) == len(PATHS)
    assert found.also is None
    bare = [flatten(path) for path in PATHS]
    assert places_of([*bare, "transformer_blocks_0_attn_temporal_proj_out"]).also is None


def test_blocks_of_another_model_are_not_taken_for_ours() -> None:
    """Names of a UNet, whose transformer blocks are called like ours."""
    names = [
        f"lora_unet_{side}_blocks_{n}_attentions_0_{flatten(path)}"
        for side in ("down", "up")
        for n in range(2)
        for path in PATHS
    ]
    found = places_of(names)
    assert found.found == {}
    assert found.also == ("lora_unet_down_blocks_0_attentions_0_", len(PATHS))


def test_two_prefixes_in_one_file_are_told() -> None:
    mixed = [*PATHS[:3], *(f"transformer.{path}" for path in PATHS[3:])]
    found = places_of(mixed)
    assert found.also == ("transformer.", len(PATHS) - 3)
    assert (
        places_of([f"model.{path}" for path in PATHS[:3]] + [f"net.{path}" for path in PATHS[3:]]).found == {}
    )


def test_a_piece_of_a_dotted_name_is_not_cut() -> None:
    assert places_of(["transformer.blocks.0.my_proj_out.x"]).found == {}
    assert places_of(["_" * 100_000, "a." * 100_000]).found == {}


def test_a_number_stands_for_any() -> None:
    modules = Modules(["blocks.0.to_q", "blocks.0.net_0.to_out"], any_number=True)
    assert modules.find("blocks_27_to_q") == ("blocks.27.to_q",)
    assert modules.find("blocks_9_net_3_to_out") == ("blocks.9.net_3.to_out",)
    assert modules.find("blocks_x_to_q") == ()
    assert Modules(["a{0}.b"], any_number=True).find("a{7}_b") == ("a{7}.b",)


def test_names_that_look_alike() -> None:
    modules = {"denoiser": Modules(["a.b", "a_b"])}
    assert find_places(["lora_unet_a_b"], [False], modules).found[0][1] == ("a.b", "a_b")
    assert find_places(["transformer.a.b"], [False], modules).found[0][1] == ("a.b",)
    assert find_places(["transformer.a_b"], [False], modules).found[0][1] == ("a_b",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lora_te_encoder_block_0", True),
        ("lora_te2_text_model", True),
        ("text_encoder.encoder.block.0", True),
        ("text_encoders.clip_l.x", True),
        ("base_model.model.encoder.block.3.layer.0.SelfAttention.q", True),
        ("lora_unet__transformer_blocks_0_attn1_to_q", False),
        ("transformer.text_embedding.linear_1", False),
        ("encoder.blocks.0.to_q", False),
        ("transformer.context_encoder.x", False),
    ],
)
def test_words_of_text_encoders(name: str, expected: bool) -> None:
    assert is_text(name) is expected
