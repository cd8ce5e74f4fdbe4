"""The order of samples: each once per epoch, one bucket per batch, a function of (seed, epoch)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_runtime.errors import UserError
from ea_runtime.training.data.order import BatchOrder, PhaseOrder
from ea_runtime.training.recipe import Phase

BUCKETS = st.lists(st.sampled_from(["a", "b", ("c", 9)]), min_size=1, max_size=60)
SIZES, SEEDS = st.integers(1, 9), st.integers(0, 2**32)


def epoch(order: BatchOrder, number: int) -> list[list[int]]:
    count = order.batches_per_epoch
    return [order.batch(number * count + place) for place in range(count)]


@settings(max_examples=60, deadline=None)
@given(BUCKETS, SIZES, SEEDS, st.integers(0, 1000))
def test_every_sample_once_an_epoch_and_one_bucket_a_batch(
    buckets: list[object], size: int, seed: int, number: int
) -> None:
    batches = epoch(BatchOrder(buckets, size, seed), number)
    assert sorted(i for batch in batches for i in batch) == list(range(len(buckets)))
    assert all(1 <= len(batch) <= size for batch in batches)
    assert all(len({buckets[i] for i in batch}) == 1 for batch in batches)
    # each bucket has at most one batch that is not full
    short = [buckets[batch[0]] for batch in batches if len(batch) < size]
    assert len(short) == len(set(short))


@settings(max_examples=30, deadline=None)
@given(BUCKETS, SIZES, SEEDS, st.lists(st.integers(0, 300), min_size=1, max_size=8))
def test_a_batch_depends_on_seed_and_number_alone(
    buckets: list[object], size: int, seed: int, numbers: list[int]
) -> None:
    walked = BatchOrder(buckets, size, seed)
    for number in numbers:
        assert walked.batch(number) == BatchOrder(buckets, size, seed).batch(number)


def test_epochs_and_seeds_differ() -> None:
    buckets = ["a"] * 40
    order = BatchOrder(buckets, 4, 0)
    assert epoch(order, 0) != epoch(order, 1)
    assert epoch(order, 0) != epoch(BatchOrder(buckets, 4, 1), 0)


def test_the_order_is_the_one_that_runs_were_made_with() -> None:
    """A run started with an earlier version resumes in the same order."""
    order = BatchOrder(["a", "b", "a", "b", "a", "a", "b"], 2, 3)
    pinned = [[1, 3], [6], [2, 0], [5, 4], [0, 2], [4, 5], [3, 6], [1]]
    assert [order.batch(i) for i in range(8)] == pinned


@pytest.mark.parametrize("buckets", [[], [None, None]])
def test_no_samples_is_an_error(buckets: list[None]) -> None:
    with pytest.raises(UserError, match="data set is empty"):
        BatchOrder(buckets, 4, 0)


def test_a_sample_without_a_bucket_is_left_out() -> None:
    order = BatchOrder(["a", None, "b", "a"], 4, 0)
    assert order.num_samples == 3
    assert sorted(i for batch in epoch(order, 0) for i in batch) == [0, 2, 3]


def test_phases_count_their_batches_from_their_start() -> None:
    first, second = ["a"] * 7, ["b", None, "b", "c", "c", "c"]
    order = PhaseOrder([Phase(0, first), Phase(5, second, 3), Phase(9, first, 2)], 4, 1)
    alone = [BatchOrder(first, 4, 1), BatchOrder(second, 3, 1), BatchOrder(first, 2, 1)]
    for step in range(14):  # with batches of one sample
        phase = (step >= 5) + (step >= 9)
        draw = order.draw(step)
        assert (draw.phase, draw.indices) == (phase, alone[phase].batch(step - (0, 5, 9)[phase]))
        assert {order.phases[phase].buckets[i] for i in draw.indices} == {draw.bucket}
    assert order.num_samples == 7


@pytest.mark.parametrize("starts", [[], [1], [0, 5, 5], [0, 5, 3]])
def test_phases_follow_one_another(starts: list[int]) -> None:
    with pytest.raises(UserError, match="must start at step 0 and follow one another"):
        PhaseOrder([Phase(start, ["a"]) for start in starts], 4, 0)


def test_buckets_that_can_never_fill_a_batch_are_told() -> None:
    first, second = ["a"] * 6, ["b", None, "b", "c", "c", "c"]
    assert PhaseOrder([Phase(0, first)], 4, 1).lines() == []
    assert PhaseOrder([Phase(0, second)], 3, 1).lines() == [
        "1 of 2 buckets can never fill a batch of 3, theirs are smaller (b: 2)"
    ]
    assert PhaseOrder([Phase(0, first), Phase(5, second, 9)], 4, 1).lines() == [
        "from step 5: 2 of 2 buckets can never fill a batch of 9, theirs are smaller (b: 2, c: 3)"
    ]
    many = PhaseOrder([Phase(0, list("abcde"))], 2, 1).lines()[0]
    assert many.endswith("(a: 1, b: 1, c: 1, ...)")
