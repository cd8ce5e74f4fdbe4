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


def test_an_error_of_just_the_tolerance_is_sound() -> None:
    high = torch.full((10,), 20.0)
    assert compare(high + 1, high) == (0.05, False)


def test_an_output_without_numbers_is_sound() -> None:
    empty = Spec((0, 3), (3, 1), torch.bfloat16)
    assert Canary(CPU, None).verdict(Trial(_aten.mul.Tensor, (empty, empty))) == Verdict()


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


@pytest.mark.parametrize("text", ["{}", '{"version": 1}', '{"machines": {}}'])
def test_a_file_without_its_parts_is_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    assert Canary(CPU, tmp_path / "file").verdict(PRODUCT) == Verdict()


def test_what_is_new_is_written_once_and_only_to_a_file(tmp_path: Path) -> None:
    for path in (None, tmp_path / "file"):
        canary = Canary(CPU, path)
        canary.verdict(PRODUCT)
        canary.save()
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    (tmp_path / "file").unlink()
    canary.save()
    assert list(tmp_path.iterdir()) == []
