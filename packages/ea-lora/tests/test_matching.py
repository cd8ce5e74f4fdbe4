"""Layers of a file and modules of a model: which belong together, what is left out, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ea_lora.keys import Part
from ea_lora.layer import Layer, LoraFile
from ea_lora.matching import Matching, match_lora, networks_of
from ea_runtime.errors import UserError

Networks = dict[Part, nn.Module | None]


def layer(name: str, inputs: int = 8, outputs: int = 8, part: Part = "denoiser") -> Layer:
    path = name.removeprefix("lora_unet__").removeprefix("lora_te_")
    return Layer(name, part, path, torch.ones(2, inputs), torch.ones(outputs, 2))


def match(layers: Sequence[Layer], networks: Networks, **more: Any) -> Matching:
    return match_lora(LoraFile(Path("style.safetensors"), tuple(layers), {}), networks, **more)


@pytest.fixture
def networks(small: Any) -> Networks:
    return networks_of(small.make_pipe())


@pytest.fixture
def bare(small: Any) -> Networks:
    """Of a model without a text encoder."""
    return networks_of(small.make_pipe(text=False))


def refused(layers: Sequence[Layer], networks: Networks, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        match(layers, networks, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


Q, K = layer("lora_unet__blocks_0_to_q"), layer("lora_unet__blocks_1_to_q")
TEXT = layer("lora_te_encoder_0_to_q", part="text")
STRANGER = layer("lora_unet__blocks_7_to_q")


def test_each_layer_meets_its_module(networks: Networks) -> None:
    found = match([Q, TEXT], networks)
    assert [(one.layer.name, one.path, one.layer.part) for one in found.matches] == [
        (Q.name, "blocks.0.to_q", "denoiser"),
        (TEXT.name, "encoder.0.to_q", "text"),
    ]
    for one in found.matches:
        module = networks[one.layer.part]
        assert module is not None
        assert one.module is module.get_submodule(one.path)
        assert one.weight is one.module.weight
    assert (found.ignored, found.left_out) == ((), ())
    assert found.names() == {"matched": (Q.name, TEXT.name), "ignored": (), "left_out": ()}
    assert found.summary() == "LoRA 'style.safetensors': 2 layers matched, 0 ignored"


@pytest.mark.parametrize(
    ("options", "matched", "left_out"),
    [
        ({"parts": ("denoiser",)}, [Q.name, K.name], [TEXT.name]),
        ({"parts": ("text",)}, [TEXT.name], [Q.name, K.name]),
        ({"exclude": ["blocks.0.*"]}, [K.name, TEXT.name], [Q.name]),
        ({"exclude": ["*to_q"], "parts": ("denoiser", "text")}, None, None),
    ],
)
def test_what_is_left_out_is_on_request(
    networks: Networks, options: dict[str, Any], matched: list[str] | None, left_out: list[str] | None
) -> None:
    if matched is None:
        line = refused([Q, K, TEXT], networks, **options)
        assert "2 for the denoiser and 1 for the text" in line
        assert "`parts` and `exclude` leave all 3 out; leave out less" in line
        return
    found = match([Q, K, TEXT], networks, **options)
    assert [one.layer.name for one in found.matches] == matched
    assert [one.name for one in found.left_out] == left_out
    assert found.summary().endswith(
        f"{len(matched)} layers matched, 0 ignored, {len(left_out or [])} excluded"
    )


@pytest.mark.parametrize("count", [1, 3, 4])
def test_layers_without_a_module_are_counted_and_three_named(networks: Networks, count: int) -> None:
    strangers = [layer(f"lora_unet__blocks_{7 + number}_to_q") for number in range(count)]
    found = match([Q, *strangers], networks)
    assert [one.name for one in found.ignored] == [one.name for one in strangers]
    assert found.names()["ignored"] == tuple(one.name for one in strangers)
    named = ", ".join(one.name for one in strangers[:3])
    more = ", ..." if count > 3 else ""
    assert found.summary().endswith(f"1 layers matched, {count} ignored (the model has no {named}{more})")


def test_a_network_that_is_not_there(bare: Networks) -> None:
    """Layers for it are no surprise if they are left out, and an error if not, even next to ones that match."""
    assert bare["text"] is None
    line = refused([Q, TEXT, layer("lora_te_encoder_0_net_0", part="text")], bare)
    assert "has 2 layers for a text encoder, which this model lacks" in line
    found = match([Q, TEXT], bare, parts=("denoiser",))
    assert [one.name for one in found.left_out] == [TEXT.name]


def test_a_text_layer_that_fits_nothing_is_ignored_where_there_is_an_encoder(networks: Networks) -> None:
    found = match([Q, layer("lora_te_encoder_5_to_q", part="text")], networks)
    assert len(found.ignored) == 1


def test_nothing_that_fits_is_refused_with_counts(networks: Networks) -> None:
    line = refused([STRANGER, layer("lora_unet__blocks_8_to_q")], networks)
    assert "has layers that fit nothing here: 2 for the denoiser (first 'lora_unet__blocks_7_to_q')" in line
    assert "(9 in the denoiser and 3 in the text)" in line
    assert refused([], networks)


def test_two_layers_for_one_module_are_refused(networks: Networks) -> None:
    line = refused([Q, layer(Q.name), K], networks)
    named = "'lora_unet__blocks_0_to_q'"
    assert line == f"LoRA file 'style.safetensors' has two layers for blocks.0.to_q: {named} and {named}"


@pytest.mark.parametrize(("inputs", "outputs"), [(7, 8), (8, 9), (16, 8)])
def test_other_shapes_are_refused(networks: Networks, inputs: int, outputs: int) -> None:
    line = refused([layer(Q.name, inputs, outputs), K], networks)
    assert f"is for {inputs} -> {outputs} channels, blocks.0.to_q has 8 -> 8" in line


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_weights_without_16_bits_are_refused(networks: Networks, dtype: torch.dtype) -> None:
    denoiser = networks["denoiser"]
    assert denoiser is not None
    module: Any = denoiser.get_submodule("blocks.0.to_q")
    module.weight = nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
    assert f"has weights of {str(dtype)[6:]}; LoRA needs 16-bit floats" in refused([Q], networks)
    module.weight = nn.Parameter(module.weight.detach().to(torch.float16), requires_grad=False)
    assert len(match([Q], networks).matches) == 1


def test_an_unknown_part_is_refused(networks: Networks) -> None:
    assert "`parts` may hold denoiser, text, got 'texts'; did you mean 'text'?" in refused(
        [Q], networks, parts=("texts",)
    )


def test_names_that_are_alike_when_flattened_are_refused() -> None:
    """`a_b.c` and `a.b_c` are one name in files that write `_` for dots: neither is guessed."""

    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.ModuleDict({"b_c": nn.Linear(8, 8)})
            self.a_b = nn.ModuleDict({"c": nn.Linear(8, 8)})

    line = refused([layer("lora_unet__a_b_c")], {"denoiser": Alike(), "text": None})
    assert "can mean a.b_c and a_b.c; name it with dots" in line


def test_a_prefix_that_only_some_layers_have_is_refused(networks: Networks) -> None:
    layers = [layer(f"blocks.{n}.{name}") for n, name in ((0, "to_q"), (1, "to_q"))]
    mixed = [*layers, layer("other.proj_in"), layer("other.mix")]
    line = refused(mixed, networks)
    assert "2 layers under the names of this model, and 2 under them only without the prefix 'other.'" in line


def test_networks_of_what_there_is(small: Any) -> None:
    pipe = small.make_pipe()
    assert networks_of(pipe) == {"denoiser": pipe.denoiser, "text": pipe.text.model}
    assert networks_of(pipe.denoiser) == {"denoiser": pipe.denoiser, "text": None}
    assert networks_of(SimpleNamespace(denoiser=pipe.denoiser)) == {"denoiser": pipe.denoiser, "text": None}
    module = pipe.text.model
    assert networks_of(SimpleNamespace(denoiser=pipe.denoiser, text=module))["text"] is module
    for wrong in (SimpleNamespace(denoiser=None), "model", SimpleNamespace(denoiser=lambda x: x)):
        with pytest.raises(UserError, match="`pipe` must be a VideoPipeline or a torch module, got"):
            networks_of(wrong)


def test_convolutions_and_packed_weights_have_the_shape_of_their_layer(networks: Networks) -> None:
    """A weight of 4 bits is packed: the numbers of inputs and outputs are the module's, its dtype is not the LoRA's."""
    denoiser = networks["denoiser"]
    assert denoiser is not None
    found = match([layer("lora_unet__proj_in"), layer("lora_unet__mix"), Q], networks)
    assert [one.shape for one in found.matches] == [(8, 8, 1, 1), (8, 8, 1), (8, 8)]
    assert {one.dtype for one in found.matches} == {torch.float32}
    module: Any = denoiser.get_submodule("blocks.0.to_q")
    module.weight = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    module.compute_dtype = torch.bfloat16
    (one,) = match([Q], networks).matches
    assert (one.shape, one.dtype) == ((8, 8), torch.bfloat16)
    module.compute_dtype = "bfloat16"
    assert "has weights of uint8" in refused([Q], networks)


def test_layers_without_a_module_are_ignored_with_exclusions_too(networks: Networks) -> None:
    found = match([Q, K, STRANGER], networks, exclude=["blocks.1.*"])
    assert found.names() == {"matched": (Q.name,), "ignored": (STRANGER.name,), "left_out": (K.name,)}


def test_matches_are_compared_by_identity_and_never_changed(networks: Networks) -> None:
    """Two of them with equal tensors are two: `==` over tensors has no single answer."""
    first = match([Q], networks)
    assert first != replace(first)
    assert first.matches[0] != replace(first.matches[0])
    for held, name in ((first, "ignored"), (first.matches[0], "path")):
        with pytest.raises(AttributeError):
            setattr(held, name, "other")


def test_networks_that_another_engine_runs_are_those_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(8, 8, device="meta")
    held = {"denoiser": SimpleNamespace(network=network)}
    monkeypatch.setattr("ea_lora.matching.exported_weights", lambda pipe: held)
    assert networks_of(SimpleNamespace(denoiser=lambda x: x)) == {"denoiser": network, "text": None}


def test_what_would_match_without_a_prefix_is_said(networks: Networks) -> None:
    mixed = [layer("other.blocks.0.to_q"), layer("other.blocks.1.to_q"), layer("strange_one")]
    line = refused(mixed, networks)
    assert line.endswith(
        "without the prefix 'other.', which the others do not have; it was trained on another model"
    )
    assert "; 2 would match" in line
