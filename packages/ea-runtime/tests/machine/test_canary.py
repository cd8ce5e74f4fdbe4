"""The canary: its verdicts, its remembered results, and a deliberately broken convolution."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ea_runtime.machine import canary as module
from ea_runtime.machine.canary import Canary, Spec, Trial, Verdict, compare, spec_of
from ea_runtime.testing.formats import broken_convolution

CPU = torch.device("cpu")
_aten = torch.ops.aten


def trial(op: Any, *args: Any) -> Trial:
    return Trial(op, spec_of(args))


def convolution(dtype: torch.dtype = torch.bfloat16, channels: int = 4) -> Trial:
    x, weight = torch.empty(1, channels, 3, 6, 6, dtype=dtype), torch.empty(5, channels, 3, 3, 3, dtype=dtype)
    return trial(
        _aten.convolution.default, x, weight, None, [1, 1, 1], [0, 1, 1], [1, 1, 1], False, [0, 0, 0], 1
    )


def gradients(dtype: torch.dtype = torch.bfloat16, channels: int = 4) -> Trial:
    grad = torch.empty(1, 5, 1, 6, 6, dtype=dtype)
    x, weight = torch.empty(1, channels, 3, 6, 6, dtype=dtype), torch.empty(5, channels, 3, 3, 3, dtype=dtype)
    rest = ([1, 1, 1], [0, 1, 1], [1, 1, 1], False, [0, 0, 0], 1, [True, True, False])
    return trial(_aten.convolution_backward.default, grad, x, weight, None, *rest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sound_operations_pass(dtype: torch.dtype) -> None:
    canary = Canary(CPU, None)
    x = torch.empty(6, 32, dtype=dtype)
    for one in (
        convolution(dtype),
        gradients(dtype),
        trial(_aten.mm.default, x, torch.empty(48, 32, dtype=dtype).t()),
        trial(_aten.native_layer_norm.default, x, [32], None, None, 1e-6),
        trial(_aten._softmax_backward_data.default, x, x, 1, dtype),
    ):
        assert canary.verdict(one) == Verdict(), one.key


@pytest.mark.parametrize("value", [math.nan, math.inf, 3.0])
@pytest.mark.parametrize(
    ("part", "one", "index"),
    [("output", convolution(), 0), ("input gradient", gradients(), 0), ("weight gradient", gradients(), 1)],
)
def test_a_broken_convolution_is_caught(part: str, one: Trial, index: int, value: float) -> None:
    """The twin: only the output or a gradient at one shape is wrong."""
    with broken_convolution(part, at=lambda x, _: x.shape[1] == 4, value=value):
        canary = Canary(CPU, None)
        assert set(canary.verdict(one).wrong) == {index}
        assert one.outputs[index] == part
        for other in (convolution(channels=3), gradients(channels=3)):
            assert not canary.verdict(other).wrong
        sound = gradients() if part == "output" else convolution()
        assert not canary.verdict(sound).wrong
    assert not Canary(CPU, None).verdict(one).wrong


def test_a_single_wrong_value_is_caught() -> None:
    low = high = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert compare(low.bfloat16(), high)[1] is False
    low = low.clone()
    low[500] += 1.0
    assert compare(low, high)[1] is True


def test_what_was_found_is_remembered_for_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "canaries.json"
    with broken_convolution("weight gradient"):
        first = Canary(CPU, path)
        found = first.verdict(gradients())
        first.verdict(convolution())
        first.save()
    tried: list[Trial] = []
    monkeypatch.setattr(Canary, "_try", lambda self, one: tried.append(one) or Verdict())
    again = Canary(CPU, path)
    assert again.verdict(gradients()) == found
    assert again.verdict(convolution()) == Verdict()
    assert not tried
    again.verdict(convolution(channels=7))
    assert len(tried) == 1
    again.save()
    assert len(next(iter(json.loads(path.read_text())["machines"].values()))) == 3
    monkeypatch.setattr(module, "describe_machine", lambda device: "another")
    assert Canary(CPU, path).verdict(gradients()) == Verdict()
    assert len(tried) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 0}', '{"version": 1, "machines": 3}', "[" * 100_000]
)
def test_a_damaged_file_is_an_empty_one(text: str, tmp_path: Path) -> None:
    path = tmp_path / "canaries.json"
    path.write_text(text)
    canary = Canary(CPU, path)
    assert canary.verdict(convolution()) == Verdict()
    canary.save()
    assert json.loads(path.read_text())["version"] == 1


def test_a_file_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    canary = Canary(CPU, tmp_path / "file" / "canaries.json")
    canary.verdict(convolution())
    canary.save()
    assert "cannot be written" in caplog.text


def test_what_cannot_be_tried_is_no_verdict(tmp_path: Path) -> None:
    path = tmp_path / "canaries.json"
    canary = Canary(CPU, path)
    x = torch.empty(3, 4, dtype=torch.bfloat16)
    verdict = canary.verdict(trial(_aten.mm.default, x, x))
    assert not verdict.wrong
    assert "shapes cannot be multiplied" in verdict.reason
    canary.save()
    assert not path.exists()


def test_attention_is_tried_with_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec((2, 3, 8, 16), (384, 16, 48, 1), torch.bfloat16)
    mask = Spec((2, 1, 8, 8), (8, 8, 0, 1), torch.bfloat16)
    one = Trial(module.attention, (spec, spec, spec, mask, False, None, True))
    assert Canary(CPU, None).verdict(one) == Verdict()

    def broken(query: Any, key: Any, value: Any, **settings: Any) -> Any:
        out = nn.functional.linear(query @ key.transpose(2, 3) @ value, torch.eye(16, dtype=query.dtype))
        return out * (1.2 if query.dtype == torch.bfloat16 else 1.0)

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", broken)
    assert set(Canary(CPU, None).verdict(one).wrong) == {0, 1, 2, 3}


def test_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    Canary(CPU, None).verdict(gradients())
    assert torch.equal(torch.randn(2), expected)


def test_results_are_in_ea_cache_or_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EA_CACHE", str(tmp_path))
    assert module.canary_file() == tmp_path / "canaries.json"
    monkeypatch.delenv("EA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert module.canary_file() == tmp_path / "ea" / "canaries.json"
