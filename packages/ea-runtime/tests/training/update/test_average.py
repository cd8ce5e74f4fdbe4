"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ea_runtime.training.update.average import WeightAverage


def build() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    return module


def move(module: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by)


def test_the_ramp_follows_its_formula_and_ends_at_the_decay() -> None:
    module = build()
    average = WeightAverage(module, 0.5)
    expected = module[0].weight.detach().clone()
    for n in range(1, 20):
        move(module, 1.0)
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = expected + (1 - decay) * (module[0].weight.detach() - expected)
    assert torch.allclose(average.averages["0.weight"], expected, atol=1e-5)
    assert min(0.5, 20 / 29) == 0.5  # the ramp was over


def test_the_first_weights_are_soon_forgotten() -> None:
    module = build()
    with torch.no_grad():
        module[0].weight.fill_(1e6)
    average = WeightAverage(module, 0.9999)
    with torch.no_grad():
        module[0].weight.fill_(1.0)
    for _ in range(100):
        average.update()
    assert average.averages["0.weight"].max() < 2.0  # with 0.9999 from the start, 990,000 would be left


def test_swapped_in_restores_to_the_bit() -> None:
    module = build()
    average = WeightAverage(module, 0.9)
    move(module, 0.1)
    average.update()
    move(module, 1 / 3)
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    averages = {k: v.clone() for k, v in average.averages.items()}
    with average.swapped_in():
        inside = {k: v.clone() for k, v in module.state_dict().items()}
    assert all(torch.equal(inside[k], averages[k]) for k in averages)
    assert all(torch.equal(weights[k], v) for k, v in module.state_dict().items())
    assert all(torch.equal(averages[k], v) for k, v in average.averages.items())
    with pytest.raises(OSError), average.swapped_in():
        raise OSError
    assert all(torch.equal(weights[k], v) for k, v in module.state_dict().items())


def test_frozen_weights_and_buffers_are_left_alone() -> None:
    module = build()
    average = WeightAverage(module, 0.9)
    assert set(average.averages) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_state_round_trip_and_install() -> None:
    module = build()
    average = WeightAverage(module, 0.9)
    for _ in range(3):
        move(module, 0.25)
        average.update()
    other_module = build()
    other = WeightAverage(other_module, 0.9)
    other.load_state_dict({k: v.clone() for k, v in average.state_dict().items()})
    assert other.updates == 3
    other_module.load_state_dict(module.state_dict())
    for one, its_module in ((average, module), (other, other_module)):
        move(its_module, 0.25)
        one.update()
        one.install()
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), other_module.parameters(), strict=True))
