"""The update of a turn: groups, rates, 8-bit Adam if installed, and refusals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.run.loop import Trainer
from ea_runtime.training.update.optimizers import TurnOptimizer, check_groups

Make = Callable[..., Trainer]


def options(**more: Any) -> TrainOptions:
    return TrainOptions(**{"steps": 10, "batch_size": 2, "lr": 1e-3, "muon_lr": 1e-2, **more})


def parameter(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(*shape))


def test_groups_have_their_rates_and_are_shown() -> None:
    groups = [
        {"params": [parameter(4, 4)], "kind": "muon", "name": "blocks"},
        {"params": [parameter(4)], "kind": "adamw", "lr_scale": 0.1, "name": "motion"},
        {"params": [parameter(3)], "turn": "critic"},
        {"params": [torch.nn.Parameter(torch.ones(9), requires_grad=False)]},
    ]
    first = TurnOptimizer(groups, "model", options(), first=True)
    assert first.lines() == [
        "blocks: muon, 0.000 M parameters, peak rate 0.01",
        "motion: adamw, 0.000 M parameters, peak rate 0.0001",
    ]
    second = TurnOptimizer(groups, "critic", options(optimizer="adam"), first=False)
    assert second.lines() == ["critic 2: adam, 0.000 M parameters, peak rate 0.001"]
    first.set_rate(0.5)
    assert [group["lr"] for group in first.optimizers[0].param_groups] == [5e-3, 5e-5]


def test_wrong_groups_are_told() -> None:
    shared = parameter(2)
    with pytest.raises(ValueError, match="must be one of model, critic, got 'other'"):
        check_groups([{"params": [shared], "turn": "other"}], ["model", "critic"])
    with pytest.raises(ValueError, match="trained in two turns, 'model' and 'critic'"):
        check_groups([{"params": [shared]}, {"params": [shared], "turn": "critic"}], ["model", "critic"])
    with pytest.raises(UserError, match="leaves nothing to train"):
        check_groups([{"params": []}], ["model"])


def test_gradients_are_clipped_together_and_none_counts_as_zero() -> None:
    used, unused = parameter(3), parameter(2)
    turn = TurnOptimizer([{"params": [used, unused]}], "model", options(clip=0.5), first=True)
    (used * 2).sum().backward()
    assert turn.finish_gradients() == pytest.approx(12**0.5)
    assert used.grad is not None
    assert used.grad.norm() == pytest.approx(0.5)
    assert unused.grad is not None
    assert torch.equal(unused.grad, torch.zeros(2))


def test_8_bit_adam_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim"):  # in an environment that has it, imported by peft
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingPackageError, match=r"needs the package bitsandbytes; `pip install 'ea-runtime\[adam8bit\]'`"
    ):
        TurnOptimizer([{"params": [parameter(3)]}], "model", options(optimizer="adamw8bit"), first=True)


class Half(torch.optim.SGD):
    """A replacement for bitsandbytes' Adam: its state is one tensor of bytes and a number per parameter."""

    def __init__(self, groups: Any, lr: float, betas: Any, eps: float, weight_decay: float) -> None:
        super().__init__(groups, lr=lr)
        for group in self.param_groups:
            group["betas"] = betas

    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                state["bytes"] = state.get("bytes", torch.zeros(7, dtype=torch.uint8)) + 1
                p.data.add_(p.grad, alpha=-group["lr"] / state["step"] * float(state["bytes"][0]))


def test_8_bit_adam_beside_muon_is_saved_and_goes_on(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from safetensors.torch import load_file

    package, inner = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    vars(inner)["AdamW8bit"] = Half
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", inner)
    train = {"optimizer": "adamw8bit", "keep": 9}
    make_trainer("whole", train=train).run(resume=False)
    trainer = make_trainer("cut", train=train, toy={"sigterm": [5]})
    assert [type(one).__name__ for one in trainer.turns[0].optimizers] == ["MuonAdamW", "Half"]
    with pytest.raises(KeyboardInterrupt):
        trainer.run(resume=False)
    make_trainer("cut", train=train).run(resume=True)
    one, other = (load_file(tmp_path / n / "checkpoint-12" / "state.safetensors") for n in ("whole", "cut"))
    assert any(value.dtype == torch.uint8 for value in one.values())
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
