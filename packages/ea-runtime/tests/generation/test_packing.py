"""State as JSON and tensors: each kind comes back as it was, shares no memory, and others are refused."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ea_runtime.generation.packing import UnpackableError, attributes, pack, set_attributes, unpack

CPU = torch.device("cpu")


def again(value: Any) -> Any:
    """The value after it was packed, written as JSON, read and unpacked."""
    tensors: dict[str, Tensor] = {}
    tree = json.loads(json.dumps(pack(value, tensors)))
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    return unpack(tree, tensors, CPU)


def is_same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return one == other


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        7,
        0.1,
        "größer",
        [],
        (),
        {},
        [1, (2.5, None), [False, {"a": ("x",), "b": {}}]],
        torch.arange(4.0),
        torch.tensor(3),
        torch.ones(2, 3, dtype=torch.bfloat16).T,
        torch.tensor([True, False]),
        np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::2],
        np.array(2.5),
        np.float32(0.1),
        np.int64(7),
        {"one": torch.zeros(1), "two": [torch.ones(1), np.ones(2)], "three": torch.full((1,), 2.0)},
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_comes_back(value: Any) -> None:
    assert is_same(again(value), value)


def test_a_packed_value_shares_no_memory() -> None:
    tensor, array = torch.zeros(2), np.zeros(2)
    tensors: dict[str, Tensor] = {}
    tree = pack([tensor, array], tensors)
    tensor += 1
    array += 1
    first, second = unpack(tree, tensors, CPU), unpack(tree, tensors, CPU)
    first[0] += 1
    first[1] += 1
    assert second[0].tolist() == second[1].tolist() == [0, 0]
    assert unpack(tree, tensors, CPU)[0].tolist() == [0, 0]


def test_gradients_are_not_kept() -> None:
    found = again(torch.ones(2, requires_grad=True) * 2)
    assert not found.requires_grad


def test_tensors_go_to_the_device_if_they_were_not_on_the_cpu() -> None:
    tensors: dict[str, Tensor] = {}
    tree = pack(torch.zeros(1), tensors)
    assert tree["on_cpu"] is True
    meta = torch.device("meta")
    assert unpack(tree, tensors, meta).device == CPU
    assert unpack({**tree, "on_cpu": False}, tensors, meta).device == meta
    assert (
        unpack({"list": [{"dict": {"a": {**tree, "on_cpu": False}}}]}, tensors, meta)[0]["a"].device == meta
    )


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({1}, "state is a set"),
        ({"a": [0, {"b": object()}]}, r"state\.a\[1\]\.b is a object"),
        ({1: 2}, "state is a dict"),
        ([b"x"], r"state\[0\] is a bytes"),
    ],
)
def test_other_kinds_are_refused_with_their_place(value: Any, where: str) -> None:
    with pytest.raises(UnpackableError, match=f"^{where}$"):
        pack(value, {})


@pytest.mark.parametrize(
    ("tree", "error"),
    [
        ([1], TypeError),
        ({}, TypeError),
        ({"set": []}, ValueError),
        ({"tensor": "t9", "on_cpu": True}, KeyError),
        ({"array": "t9", "is_number": False}, KeyError),
    ],
)
def test_a_damaged_tree_is_an_error(tree: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        unpack(tree, {}, CPU)


def test_attributes_are_those_of_the_state() -> None:
    thing = SimpleNamespace(a=1, _internal_dict={"x": object()}, _b=2)
    assert attributes(thing) == {"a": 1, "_b": 2}
    set_attributes(thing, {"a": 3, "c": 4})
    assert (thing.a, thing.c, thing._b) == (3, 4, 2)
    with pytest.raises(UnpackableError, match=r"^int does not show its attributes$"):
        attributes(1)


def test_attributes_are_set_past_an_object_s_own_ways() -> None:
    class Frozen:
        def __setattr__(self, name: str, value: Any) -> None:
            raise AttributeError(name)

    thing = Frozen()
    set_attributes(thing, {"a": 1})
    assert attributes(thing) == {"a": 1}
