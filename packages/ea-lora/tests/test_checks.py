"""Tensors of a file before a layer is made of them: each single fault is refused, and what is at a limit is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ea_lora.checks import group_tensors, make_layer
from ea_runtime.errors import UserError

DOWN, UP = torch.ones(2, 8), torch.ones(6, 2)


def roles(**changes: Any) -> dict[Any, Tensor]:
    found = {"down": DOWN, "up": UP, "alpha": torch.tensor(4.0), **changes}
    return {role: value for role, value in found.items() if value is not None}


def refused(**changes: Any) -> str:
    with pytest.raises(UserError, match="a file: layer 'a name'") as error:
        make_layer("a name", "denoiser", "a.path", roles(**changes), "a file")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_layer_of_its_tensors() -> None:
    layer = make_layer("a name", "text", "a.path", roles(), "a file")
    assert (layer.name, layer.part, layer.path, layer.rank, layer.scale) == (
        "a name",
        "text",
        "a.path",
        2,
        2.0,
    )
    assert layer.down is DOWN
    assert layer.up is UP
    assert make_layer("a name", "text", "a.path", roles(alpha=None), "a file").scale == 1.0


@pytest.mark.parametrize("role", ["down", "up"])
def test_half_a_layer(role: str) -> None:
    assert f"has no {role} matrix" in refused(**{role: None})


@pytest.mark.parametrize("role", ["down", "up", "alpha"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(role: str, value: float) -> None:
    tensor = {"down": DOWN, "up": UP, "alpha": torch.tensor(4.0)}[role].clone()
    tensor.view(-1)[-1] = value
    assert f"{role} holds NaN or infinity" in refused(**{role: tensor})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_16_bits_or_wider(dtype: torch.dtype) -> None:
    values = roles(down=DOWN.to(dtype), up=UP.to(dtype), alpha=torch.tensor(4, dtype=dtype))
    assert make_layer("a name", "denoiser", "a.path", values, "a file").scale == 2.0


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_whole_numbers_are_for_alpha_alone(dtype: torch.dtype) -> None:
    values = roles(alpha=torch.tensor(4, dtype=dtype))
    assert make_layer("a name", "denoiser", "a.path", values, "a file").scale == 2.0
    for role, tensor in (("down", DOWN), ("up", UP)):
        line = refused(**{role: tensor.to(dtype)})
        assert f"{role} must be of 16-bit floats or wider, got {str(dtype)[6:]}" in line


def test_other_dtypes_are_for_nothing() -> None:
    for role, tensor in roles().items():
        assert "16-bit floats or wider, got bool" in refused(**{role: tensor.bool()})


def test_matrices_may_end_in_dimensions_of_one() -> None:
    layer = make_layer(
        "a name", "denoiser", "a.path", roles(down=DOWN[..., None], up=UP[..., None, None]), "a file"
    )
    assert (layer.num_inputs, layer.num_outputs) == (8, 6)
    for role, tensor in (("down", torch.ones(2, 8, 3)), ("up", torch.ones(6, 2, 1, 3))):
        assert f"{role} must be a matrix (or end in dimensions of 1), got shape" in refused(**{role: tensor})
    for role in ("down", "up"):
        assert f"{role} must be a matrix" in refused(**{role: torch.ones(2)})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"down": torch.ones(0, 8), "up": torch.ones(6, 0)}, "has rank 0"),
        ({"down": torch.ones(0, 8)}, "has rank 0"),
        ({"up": torch.ones(6, 0)}, "has rank 0"),
        ({"down": torch.ones(3, 8)}, "of one rank"),
        ({"up": torch.ones(6, 3)}, "of one rank"),
        ({"down": torch.ones(2, 0)}, "of one rank"),
        ({"up": torch.ones(0, 2)}, "of one rank"),
    ],
)
def test_shapes_that_make_no_layer(changes: dict[str, Tensor], said: str) -> None:
    assert said in refused(**changes)


def test_alpha_is_one_number_above_zero() -> None:
    assert "alpha must be one number, got shape [2]" in refused(alpha=torch.ones(2))
    assert "alpha must be one number, got shape [0]" in refused(alpha=torch.ones(0))
    for value in (0.0, -1.0):
        assert "alpha must be above 0" in refused(alpha=torch.tensor(value))
    layer = make_layer("a name", "denoiser", "a.path", roles(alpha=torch.full((1, 1), 0.5)), "a file")
    assert layer.scale == 0.25
    assert layer.alpha is not None
    assert layer.alpha.shape == ()


def test_changes_up_to_what_float16_holds() -> None:
    """scale * rank * max |down| * max |up|, and not more than 65504."""
    most = roles(down=torch.full((2, 8), -32752.0), alpha=torch.tensor(2.0))
    assert make_layer("a name", "denoiser", "a.path", most, "a file").scale == 1.0
    assert "would change weights by up to" in refused(
        down=torch.full((2, 8), -32753.0), alpha=torch.tensor(2.0)
    )
    assert "would change" in refused(up=torch.full((6, 2), -32753.0), alpha=torch.tensor(2.0))
    assert "would change" in refused(alpha=torch.tensor(65505.0))
    make_layer("a name", "denoiser", "a.path", roles(alpha=torch.tensor(65504.0)), "a file")


PAIR = {"a.lora_down.weight": DOWN, "a.lora_up.weight": UP}


def ungrouped(tensors: dict[str, Tensor]) -> str:
    with pytest.raises(UserError, match="a file holds") as error:
        group_tensors(tensors, "a file")
    return str(error.value)


def test_tensors_are_grouped_by_layer_and_role() -> None:
    found = group_tensors({**PAIR, "a.alpha": torch.tensor(1.0), "b.lora_up.weight": UP}, "a file")
    assert {name: set(roles) for name, roles in found.layers.items()} == {
        "a": {"down", "up", "alpha"},
        "b": {"up"},
    }
    assert found.layers["a"]["down"] is DOWN
    assert found.notes == ()


def test_a_file_of_something_else() -> None:
    line = ungrouped({"blocks.0.weight": UP, "an.other": UP})
    assert "holds no LoRA: 2 tensors, first 'an.other'; is it a whole model's file?" in line
    assert "holds no LoRA: 0 tensors; is it" in ungrouped({})
    assert "holds no LoRA: 1 tensors; is it" in ungrouped({"a.alpha": torch.tensor(1.0)})
    assert "first 'a.diff_b'" in ungrouped({"a.diff_b": torch.zeros(2)})


def test_strangers_among_the_layers() -> None:
    line = ungrouped({**PAIR, "z.weight": UP, "y.weight": UP})
    assert "holds 2 tensors that are no part of a LoRA, first 'y.weight'" in line


def test_two_tensors_for_one_role() -> None:
    assert "a second down for 'a'" in ungrouped({**PAIR, "a.lora_A.weight": DOWN})


def test_several_adapters() -> None:
    tensors = {f"a.lora_{side}.{name}.weight": DOWN for side in "AB" for name in ("one",)}
    assert set(group_tensors(tensors, "a file").layers) == {"a"}
    tensors |= {f"b.lora_{side}.two.weight": DOWN for side in "AB"}
    assert "holds 2 adapters, 'one' and 'two'; save one adapter alone" in ungrouped(tensors)
    for name in ("three", "four"):
        tensors |= {f"{name}.lora_{side}.{name}.weight": DOWN for side in "AB"}
    assert "holds 4 adapters, 'four' and 'one' and 'three'; save" in ungrouped(tensors)


def test_tensors_without_an_adapters_name_are_of_the_one_that_is_named() -> None:
    tensors = {f"a.lora_{side}.one.weight": DOWN for side in "AB"} | {"a.alpha": torch.tensor(1.0)}
    found = group_tensors(tensors, "a file")
    assert set(found.layers["a"]) == {"down", "up", "alpha"}
    with pytest.raises(AttributeError):
        found.notes = ()  # pyright: ignore[reportAttributeAccessIssue]


def test_relatives_of_lora_are_named() -> None:
    assert "only plain LoRA can be used" in ungrouped({**PAIR, "a.hada_w1_a": UP})


def test_additions_are_left_out_if_they_add_nothing() -> None:
    zeros = torch.zeros(6)
    assert group_tensors({**PAIR, "a.diff_b": zeros}, "a file").notes == (
        "'a.diff_b' is all zero and left out: it would add nothing",
    )
    notes = group_tensors({**PAIR, "a.diff_b": zeros, "b.diff_b": zeros, "b.diff": zeros}, "a file").notes
    assert notes == ("3 tensors of zeros (diff, diff_b) left out: they would add nothing",)
    some = torch.tensor([0.0, 0.0, -1e-8])
    for extras in ({"a.diff_b": some}, {"a.diff_b": zeros, "b.diff_b": some}):
        assert "which adds to a weight or bias beside the matrices and is not zero" in ungrouped(
            {**PAIR, **extras}
        )
