"""Muon and AdamW in one optimiser."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from ea_runtime.training.update.muon import MuonAdamW, orthogonalise


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (1, 5), (64, 27)])
def test_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(orthogonalise(draw(*shape)))
    # the smallest ones of a square matrix may be too close to zero for five iterations to lift them
    kept = values[values > 1e-2] if shape[0] == shape[1] else values
    assert kept.max() < 1.25
    assert kept.median() > 0.65
    if shape[0] != shape[1]:
        assert kept.min() > 0.5


def test_the_directions_stay() -> None:
    matrix = draw(12, 30)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    diagonal = u.T @ orthogonalise(matrix) @ v.T
    assert (diagonal - diagonal.diagonal().diag()).abs().max() < 1e-4


def test_zeros_stay_zeros_and_bf16_comes_close() -> None:
    assert not orthogonalise(torch.zeros(4, 6)).any()
    matrix = draw(16, 48)
    coarse = orthogonalise(matrix, dtype=torch.bfloat16)
    assert coarse.dtype == torch.float32
    assert (coarse - orthogonalise(matrix)).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["adamw", "adam"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_that_of_torch(decay: float, kind: str) -> None:
    start = [draw(5, 7), draw(7, seed=1)]
    ours = [torch.nn.Parameter(p.clone()) for p in start]
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    settings: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": decay}
    mine = MuonAdamW([{"params": ours, "kind": kind}], **settings)
    other = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[kind](theirs, **settings)
    for step in range(50):
        for index, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            gradient = draw(*p.shape, seed=100 + 2 * step + index) * 10.0 ** (step % 5 - 2)
            p.grad, q.grad = gradient.clone(), gradient.clone()
        mine.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


def test_steps_counted_in_whole_numbers_go_on() -> None:
    """Checkpoints of ea-runtime 0.1 count steps this way."""
    parameters = [torch.nn.Parameter(draw(6)) for _ in range(2)]
    optimizers = [MuonAdamW([{"params": [parameter], "kind": "adamw"}], lr=0.01) for parameter in parameters]
    for step in range(4):
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            parameter.grad = draw(6, seed=step)
            optimizer.step()
        old = optimizers[1].state_dict()
        old["state"][0]["step"] = old["state"][0]["step"].long()
        optimizers[1].load_state_dict(old)
    assert torch.equal(*parameters)


def test_muon_moves_by_the_rate_whatever_the_gradient_is() -> None:
    """The update's singular values are about 1, times sqrt(rows / columns) if there are more rows."""
    for scale in (1e-6, 1e6):
        weight = torch.nn.Parameter(torch.zeros(32, 8))
        optimizer = MuonAdamW([{"params": [weight], "kind": "muon"}], lr=0.01)
        weight.grad = draw(32, 8) * scale
        optimizer.step()
        values = torch.linalg.svdvals(weight.detach()) / (0.01 * 2)
        assert 0.5 < values.min() <= values.max() < 1.25


def test_a_kernel_is_the_matrix_of_its_outputs() -> None:
    gradient = draw(6, 4, 3, 3)
    kernel, matrix = torch.nn.Parameter(torch.zeros(6, 4, 3, 3)), torch.nn.Parameter(torch.zeros(6, 36))
    for parameter in (kernel, matrix):
        parameter.grad = gradient.reshape(parameter.shape).clone()
        MuonAdamW([{"params": [parameter], "kind": "muon"}], lr=0.01).step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_state_round_trip() -> None:
    def build() -> tuple[list[torch.nn.Parameter], MuonAdamW]:
        parameters = [torch.nn.Parameter(draw(4, 6)), torch.nn.Parameter(draw(6, seed=1))]
        kinds = [{"params": [parameters[0]], "kind": "muon"}, {"params": [parameters[1]], "kind": "adamw"}]
        return parameters, MuonAdamW(kinds, lr=0.01)

    def step(parameters: list[torch.nn.Parameter], optimizer: MuonAdamW, number: int) -> None:
        for index, parameter in enumerate(parameters):
            parameter.grad = draw(*parameter.shape, seed=10 * number + index)
        optimizer.step()

    first, optimizer = build()
    for number in range(3):
        step(first, optimizer, number)
    second, other = build()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        for p, q in zip(second, first, strict=True):
            p.copy_(q)
    for number in range(3, 6):
        step(first, optimizer, number)
        step(second, other, number)
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def test_wrong_groups_are_refused() -> None:
    vector = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="'adamw', 'adam' or 'muon', got 'sgd'"):
        MuonAdamW([{"params": [vector], "kind": "sgd"}], lr=0.1)
    with pytest.raises(ValueError, match="two or more dimensions"):
        MuonAdamW([{"params": [vector], "kind": "muon"}], lr=0.1)
