"""Random numbers that belong to a sample, not to its place in a batch.

So each sample sees the same noise if a batch is computed whole, in parts, or by several processes. A number drawn from
the generator itself is the same in every part and process: a decision for the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def normal(generator: torch.Generator, indices: Sequence[int], shape: Sequence[int] = ()) -> Tensor:
    """Standard normal numbers (B, *shape), float32 on the CPU, row b a function of the generator and indices[b].

    The generator advances by one number, however many are drawn: two calls in a row differ.
    """
    return _rows(torch.randn, generator, indices, shape)


def uniform(generator: torch.Generator, indices: Sequence[int], shape: Sequence[int] = ()) -> Tensor:
    """Numbers in [0, 1), drawn as `normal` draws: (B, *shape), float32 on the CPU."""
    return _rows(torch.rand, generator, indices, shape)


def _rows(draw: Any, generator: torch.Generator, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    base = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
    one = torch.Generator()
    rows = [draw(tuple(shape), generator=one.manual_seed(mix(base, index))) for index in indices]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def mix(base: int, number: int) -> int:
    """A 64-bit seed from two numbers: near ones lead far apart."""
    return int(scramble(np.array((base + (number + 1) * 0x9E3779B97F4A7C15) % (1 << 64), dtype=np.uint64)))


def scramble(x: np.ndarray) -> np.ndarray:
    """uint64 numbers, the finaliser of SplitMix64 (Steele et al. 2014) of each. Wraps around on purpose."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
