"""The first non-finite value of a step: output, loss or gradient, and its module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ea_runtime.training.run.not_finite import find_first


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return {"sample": self.last(x)}


class Faulty(torch.autograd.Function):
    """The identity, with a non-finite gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("inf")


def step(network: Network, spoil: Callable[[Tensor], Tensor] = lambda loss: loss) -> Callable[[], float]:
    def again() -> float:
        loss = spoil(network(torch.ones(2, 3))["sample"].square().sum())
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    return again


def test_a_sound_step_has_none() -> None:
    network = Network()
    assert find_first({"net": network}, step(network)) is None
    assert not any(module._forward_hooks for module in network.modules())


def test_the_innermost_module_whose_output_is_not_finite() -> None:
    network = Network()
    dict(network.named_parameters())["blocks.1.bias"].data[2] = float("nan")
    assert find_first({"net": network}, step(network)) == "the output of `net.blocks.1`"


def test_the_loss_itself() -> None:
    network = Network()
    assert find_first({"net": network}, step(network, lambda loss: loss * float("nan"))) == "the loss"


def test_a_gradient_that_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    forward = nn.Linear.forward
    monkeypatch.setattr(network.last, "forward", lambda x: forward(network.last, Faulty.apply(x)))
    found = find_first({"net": network}, step(network))
    assert found == "the gradient that reaches the output of `net.blocks.1`"


def test_a_weight_gradient_alone() -> None:
    """The gradient that flows on is finite: the module is identified by its weight."""
    network = Network()
    weight = network.blocks[0].weight

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return x @ weight.t()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
            (gradient,), (x, weight) = gradients, ctx.saved_tensors
            return gradient @ weight, gradient.t() @ x * float("nan")

    network.blocks[0].forward = lambda x: Wrong.apply(x, weight)
    assert find_first({"net": network}, step(network)) == "the weight gradient of `net.blocks.0`"
