"""The canary where numbers are small, on one of several cards, and with a file of another version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ea_runtime.machine import canary as module
from ea_runtime.machine.canary import Canary, Spec, Trial, Verdict, compare

CPU = torch.device("cpu")
_aten = torch.ops.aten
X = Spec((2, 3), (3, 1), torch.bfloat16)
PRODUCT = Trial(_aten.mul.Tensor, (X, X))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_errors_are_relative(scale: float) -> None:
    high = torch.full((10_000,), scale)
    error, is_wrong = compare(high * 1.0625, high)
    assert (error, is_wrong) == (pytest.approx(0.0625, rel=1e-3), True)
    low = high.clone()
    low[3] *= 1.625  # one value: little of the norm
    error, is_wrong = compare(low, high)
    assert (error, is_wrong) == (pytest.approx(0.00625, rel=1e-3), True)


@pytest.mark.parametrize(("name", "chosen"), [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu:0", [])])
def test_a_trial_is_made_on_the_card_that_was_named(
    monkeypatch: pytest.MonkeyPatch, name: str, chosen: list[str]
) -> None:
    found: list[str] = []
    monkeypatch.setattr(module, "describe_machine", lambda device: "a machine")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.append(str(device)))
    monkeypatch.setattr(Canary, "_compare", lambda self, one: {0: 0.5})
    assert Canary(torch.device(name), None)._tried(PRODUCT) == Verdict({0: 0.5})
    assert found == chosen


@pytest.mark.parametrize(("version", "wrong"), [(1, {0: 0.5}), (2, {})])
def test_a_file_of_another_version_is_an_empty_one(
    tmp_path: Path, version: int, wrong: dict[int, float]
) -> None:
    machines = {module.describe_machine(CPU): {PRODUCT.key: [[0, 0.5]]}}
    (tmp_path / "file").write_text(json.dumps({"version": version, "machines": machines}))
    assert Canary(CPU, tmp_path / "file").verdict(PRODUCT).wrong == wrong
