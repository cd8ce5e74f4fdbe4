"""Rates that follow from the seconds of single operations."""

from __future__ import annotations

import pytest
import torch

from ea_runtime.generation import measure_operations
from ea_runtime.generation.measure_operations import Operations, linear_rates, mapping_rates

#: seconds of one call; blocks of 8 and 64 MiB: 56 MiB take 4 ms, and a block of no size 1 ms
SECONDS = {
    "convolution": 0.01,
    "small convolution": 0.001,
    "attention": 0.02,
    "moved": 0.002,
    "swept": 0.008,
    "calls": 1e-5,
    "few rows 0": 0.001,
    "many rows 0": 0.0166,
    "few rows 1": 0.002,
    "many rows 1": 0.0324,
    "new block 0": 0.0018,
    "old block 0": 0.0003,
    "new block 1": 0.008,
    "old block 1": 0.0025,
}


@pytest.fixture(scope="module")
def operations() -> Operations:
    return Operations("cpu", torch.nn.Linear)


def test_rates_are_work_over_seconds(operations: Operations) -> None:
    found = operations.rates(SECONDS)
    assert found == pytest.approx(
        {
            "convolution": 2 * 5 * 16 * 16 * 128 * 128 * 27 / 0.01,
            "attention": 4 * 2 * 12 * 512 * 512 * 64 / 0.02,
            "moved": 2 * (8 << 20) * 4 / 0.002,
            # without mapping its one large tensor
            "swept": 8 * 32 * 9 * 128 * 128 * 4 / (0.008 - 32 * 9 * 128 * 128 * 4 / 14.68e9 - 0.000929),
            "calls": 0.5e5,
            "mapped": 14.68e9,
            "mappings": 1077,
            # beyond a sixteenth of the large one's time, for a sixteenth of its positions
            "filters": 128 * 128 * 27 * 4 / (0.001 - 0.01 / 16),
            "linear": 1.8874e11,
            "weights": 1.1796e10,
            "winograd": 2 * 5 * 16 * 16 * 128 * 128 * 27 / 0.01,
            "wide": 2 * 5 * 16 * 16 * 128 * 128 * 27 / 0.01,
        },
        rel=0.01,
    )


def test_filters_that_take_no_time_have_no_rate(operations: Operations) -> None:
    assert "filters" not in operations.rates(SECONDS | {"small convolution": 0.0005})


def test_every_operation_is_timed(operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_operations, "_SECONDS", 0.0)
    assert list(operations.timers) == list(SECONDS)
    for timer in operations.timers.values():
        assert timer() > 0


@pytest.mark.parametrize(
    ("spent", "rates"),
    [
        ((0.0015, 0.0055), {"mapped": 14.7e9, "mappings": 1077.0}),
        ((0.0, 0.0), {}),  # a system that keeps what is freed
        ((0.002, 0.001), {}),
    ],
)
def test_mapping_is_what_a_new_block_takes_longer(
    spent: tuple[float, float], rates: dict[str, float]
) -> None:
    assert mapping_rates(spent) == pytest.approx(rates, rel=0.01)


@pytest.mark.parametrize(
    ("spent", "rates"),
    [
        ((0.003, 0.049), {"linear": 1.8874e11, "weights": 1.1796e10}),  # 1,472 rows: 46 ms, the weights: 1 ms
        ((0.002, 0.049), {"linear": 1.842e11}),  # no weights are seen: 2 ms for 64 rows, 49 for all
        ((0.04, 0.02), {"linear": 4.53e11}),  # a machine that was busy
    ],
)
def test_linear_layers_of_few_rows_show_what_their_weights_take(
    spent: tuple[float, float], rates: dict[str, float]
) -> None:
    elements = 768 * 768 + 768 * 3072
    assert linear_rates(elements, 4, (64, 1536), spent) == pytest.approx(rates, rel=0.01)
