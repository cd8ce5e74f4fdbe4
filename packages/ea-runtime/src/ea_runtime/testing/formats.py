"""For tests: a convolution broken on purpose, as some processors' kernels are, in bfloat16 at chosen shapes."""

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
    *parts: str, at: Callable[[Tensor, Tensor], bool] = lambda x, weight: True, value: float = float("nan")
) -> Iterator[None]:
    """Breaks bfloat16 convolutions on the CPU within the block, in every thread.

    parts: of PARTS. at: True for the input and weight of a broken one. value: the factor of a part of the result.
    """
    library = torch.library.Library("aten", "IMPL")

    def spoil(result: Tensor) -> Tensor:
        spoilt = result.clone()
        spoilt[..., ::5] *= value
        return spoilt

    def forward(*args: Any) -> Tensor:
        out = torch.ops.aten.convolution.default.redispatch(_BELOW, *args)
        fails = "output" in parts and args[0].dtype == torch.bfloat16 and at(args[0], args[1])
        return spoil(out) if fails else out

    def backward(*args: Any) -> tuple[Any, ...]:
        out = list(torch.ops.aten.convolution_backward.default.redispatch(_BELOW, *args))
        if args[1].dtype == torch.bfloat16 and at(args[1], args[2]):
            for place, part in enumerate(PARTS[1:]):
                if part in parts and out[place] is not None:
                    out[place] = spoil(out[place])
        return tuple(out)

    try:
        with warnings.catch_warnings(action="ignore"):
            library.impl("convolution", forward, "CPU")
            library.impl("convolution_backward", backward, "CPU")
        yield
    finally:
        library._destroy()
