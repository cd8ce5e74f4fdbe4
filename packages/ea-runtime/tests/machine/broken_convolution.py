"""A convolution that is broken on purpose, as some processors' kernels are: NaN or wrong in bfloat16 at some shapes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PARTS = ("output", "input gradient", "weight gradient")
_BELOW = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)


@contextmanager
def broken_convolution(
    part: str, at: Callable[[Tensor, Tensor], bool] = lambda x, weight: True, value: float = float("nan")
) -> Iterator[None]:
    """Within the block every thread's convolutions on the CPU are broken in bfloat16.

    part: of PARTS. at: asks, of input and weight, whether this one is. value: what a tenth of the result is times.
    """
    library = torch.library.Library("aten", "IMPL")

    def spoil(result: Tensor) -> Tensor:
        spoilt = result.clone()
        spoilt.view(-1)[::10] *= value
        return spoilt

    def forward(*args: Any) -> Tensor:
        out = torch.ops.aten.convolution.default.redispatch(_BELOW, *args)
        fails = part == "output" and args[0].dtype == torch.bfloat16 and at(args[0], args[1])
        return spoil(out) if fails else out

    def backward(*args: Any) -> tuple[Any, ...]:
        out = list(torch.ops.aten.convolution_backward.default.redispatch(_BELOW, *args))
        if part != "output" and args[1].dtype == torch.bfloat16 and at(args[1], args[2]):
            place = PARTS.index(part) - 1
            out[place] = None if out[place] is None else spoil(out[place].contiguous())
        return tuple(out)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library.impl("convolution", forward, "CPU")
            library.impl("convolution_backward", backward, "CPU")
        yield
    finally:
        library._destroy()
