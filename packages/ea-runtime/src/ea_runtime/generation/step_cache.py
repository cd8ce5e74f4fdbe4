"""Step caches: network passes that would change little are skipped. Approximate, on request, and reported.

A denoiser that supports it calls `cache(signal, x, blocks)` instead of `blocks(x)`: the cache returns the blocks'
output or an estimate of it. signal (B, L, D) shows how far the input has moved since the last pass.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError
from ea_runtime.plugins.host import get_host

if TYPE_CHECKING:
    from torch import Tensor

Blocks = Callable[["Tensor"], "Tensor"]


class TeaCache:
    """Gives the last computed change of x again while the input has moved little.

    The relative L1 distance between the signals of neighbouring passes is summed up; below `threshold` the pass is
    skipped and the blocks' last residual is added to x, and at `threshold` the blocks run and the sum starts
    again. The first and the last pass always run. After TeaCache (Liu et al. 2024, arXiv 2411.19108), without its
    polynomial, which is fitted to each model.
    """

    def __init__(self, threshold: float, num_passes: int) -> None:
        self.threshold = threshold
        self.num_passes = num_passes
        self.computed = 0
        self.skipped = 0
        self._moved = 0.0
        self._signal: Tensor | None = None
        self._residual: Tensor | None = None

    def __call__(self, signal: Tensor, x: Tensor, blocks: Blocks) -> Tensor:
        """x (B, L, D) -> (r * B, L, D), what blocks(x) gives or a guess at it."""
        if self._signal is not None:
            before = self._signal.float()
            distance = (signal.float() - before).abs().mean() / before.abs().mean()
            self._moved += float(distance)
        self._signal = signal
        is_last = self.computed + self.skipped == self.num_passes - 1
        if self._residual is not None and not is_last and self._moved < self.threshold:
            self.skipped += 1
            return _spread(x, self._residual) + self._residual
        out = blocks(x)
        self._residual = out - _spread(x, out)
        self._moved = 0.0
        self.computed += 1
        return out


def _spread(x: Tensor, like: Tensor) -> Tensor:
    """Guidance branches may share x: (B, L, D) -> (r * B, L, D)."""
    return x.repeat(like.shape[0] // x.shape[0], 1, 1)


def tea_cache(threshold: float) -> Callable[[int], TeaCache]:
    """The maker of caches of one threshold, given the number of network passes of a run."""
    return partial(TeaCache, threshold)


@dataclass
class StepCaching:
    """A step cache as it was asked for, and what it did in a run."""

    text: str
    make: Callable[[int], Any]
    made: list[Any] = field(default_factory=list)

    def new(self, num_passes: int) -> Any:
        """A cache for a run of that many network passes."""
        self.made.append(self.make(num_passes))
        return self.made[-1]

    def let_go(self) -> None:
        """Keeps the counts of the caches so far, and not their tensors: their network passes are over."""
        self.made = [
            SimpleNamespace(**{name: getattr(one, name, 0) for name in ("computed", "skipped")})
            for one in self.made
        ]

    @property
    def note(self) -> str:
        """One line for the user."""
        computed, skipped = (
            sum(getattr(one, name, 0) for one in self.made) for name in ("computed", "skipped")
        )
        total = computed + skipped
        return f"approximate: step cache {self.text} skipped {skipped} of {total} network passes"


def check_step_cache(text: Any) -> StepCaching | None:
    """The step cache that "teacache:0.1" asks for; None for None. Raises UserError."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise UserError(f"`step_cache` must be NAME:THRESHOLD such as 'teacache:0.1', got {text!r}")
    name, colon, number = text.partition(":")
    record = get_host().get("step_caches", name)
    try:
        threshold = float(number) if colon else 0.1
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold) or threshold < 0:
        raise UserError(
            f"`step_cache` must be NAME:THRESHOLD with a number of 0 or more such as '{name}:0.1', got {text[:60]!r}"
        )
    return StepCaching(f"{name}:{threshold:g}", record.build(threshold))


def require_support(denoiser: Any) -> None:
    """Raise UserError where a denoiser cannot hand its passes to a step cache."""
    if "step_cache" not in inspect.signature(denoiser.forward).parameters:
        raise UserError(
            f"`step_cache` needs a denoiser that can use one, and {type(denoiser).__name__} cannot; leave it out"
        )
