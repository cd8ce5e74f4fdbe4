"""Intervals by the bootstrap (Efron 1979): seeded, so the same values give the same interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
#: numbers that are drawn at once
_AT_ONCE = 1 << 22


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% percentile interval of the mean of (N,); for one value, that value twice."""
    return _ends(np.concatenate(list(_means(np.asarray(values, float), np.random.default_rng(SEED)))))


def difference_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The interval of mean(ours) - mean(theirs), of two sets that were drawn apart; each is resampled by itself."""
    rng = np.random.default_rng(SEED)
    one, other = (np.concatenate(list(_means(np.asarray(values, float), rng))) for values in (ours, theirs))
    return _ends(one - other)


def _means(values: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Means of RESAMPLES draws with replacement."""
    each = max(1, _AT_ONCE // len(values))
    for start in range(0, RESAMPLES, each):
        drawn = rng.integers(0, len(values), (min(each, RESAMPLES - start), len(values)))
        yield values[drawn].mean(1)


def _ends(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
