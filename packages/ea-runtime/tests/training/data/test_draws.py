"""Random numbers that belong to samples."""

from __future__ import annotations

import pytest
import torch

from ea_runtime.training.data.draws import mix, normal, uniform


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("draw", [normal, uniform])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5, 4)])
def test_a_sample_keeps_its_numbers_wherever_it_stands(draw: object, shape: tuple[int, ...]) -> None:
    assert callable(draw)
    whole = draw(seeded(), [5, 0, 7, 2], shape)
    assert whole.shape == (4, *shape)
    assert torch.equal(draw(seeded(), [7], shape)[0], whole[2])
    assert torch.equal(draw(seeded(), [2, 0], shape), whole[[3, 1]])
    assert draw(seeded(), [], shape).shape == (0, *shape)


def test_calls_follow_one_another_alike_whatever_they_draw() -> None:
    one, other = seeded(), seeded()
    first = normal(one, [1, 2], (4,))
    normal(other, [9], (100, 3))
    assert torch.equal(normal(one, [1], (4,)), normal(other, [1], (4,)))
    assert not torch.equal(first[0], normal(seeded(4), [1], (4,))[0])
    assert not torch.equal(first[0], first[1])


def test_they_are_normal_and_uniform() -> None:
    numbers = normal(seeded(), range(2000), (8,))
    assert abs(numbers.mean()) < 0.03
    assert abs(numbers.std() - 1) < 0.03
    assert abs(torch.corrcoef(numbers.T).fill_diagonal_(0)).max() < 0.1
    assert abs(torch.corrcoef(numbers[:40]).fill_diagonal_(0).mean()) < 0.05
    even = uniform(seeded(), range(2000))
    assert 0 <= even.min() < 0.01
    assert 0.99 < even.max() < 1
    assert abs(even.mean() - 0.5) < 0.03


def test_numbers_are_those_of_splitmix64() -> None:
    """The generator's published first numbers: a run that resumes draws what it would have drawn."""
    wanted = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [mix(0, number) for number in range(3)] == wanted


def test_seeds_lie_apart() -> None:
    seeds = {mix(base, number) & 0xFFFFFFFF for base in range(100) for number in range(100)}
    assert len(seeds) > 9_990
    assert all(0 <= mix(base, 1) < 1 << 64 for base in (0, 1, (1 << 62) - 1))
