"""Operations to check a machine with: shapes of these networks, and shapes at which kernels were found wrong."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ea_runtime.machine.canary import Spec, Trial, attention, spec_of

_aten = torch.ops.aten
#: Output frames, filters and size at which oneDNN (torch 2.13.0, AMX) gave NaN for the weight gradient of 128
#: channels.
FAULTY = [(frames, filters, 32) for frames in (1, 3) for filters in (24, 64, 128)]


def trials(dtype: torch.dtype) -> Iterator[Trial]:
    """Convolutions with their gradients, matrix products, attention and norms, in this format."""
    for frames, filters, size in FAULTY:
        yield from convolution(dtype, (1, 128, frames, size, size), filters)
    for batch, channels, frames, size, filters in ((2, 3, 9, 64, 16), (2, 64, 3, 16, 64), (1, 64, 1, 32, 3)):
        yield from convolution(dtype, (batch, channels, frames, size, size), filters)
    for rows, width, out in ((256, 128, 512), (120, 1152, 1152), (77, 100, 36)):
        for left, right in (((rows, width), (width, out)), ((width, rows), (rows, out))):
            yield Trial(_aten.mm.default, (_spec(left, dtype), _spec(right, dtype)))
        bias, x, weight = _spec((out,), dtype), _spec((rows, width), dtype), _spec((width, out), dtype)
        yield Trial(_aten.addmm.default, (bias, x, weight))
    for batch, heads, tokens, width in ((2, 4, 64, 32), (1, 16, 256, 72)):
        spec = _spec((batch, heads, tokens, width), dtype)
        yield Trial(attention, (spec, spec, spec, None, False, None, True))
    for shape, groups in (((2, 64, 3, 16, 16), 32), ((2, 16, 1, 64, 64), 1)):
        weight = _spec((shape[1],), dtype)
        size = shape[2] * shape[3] * shape[4]
        yield Trial(
            _aten.native_group_norm.default,
            (_spec(shape, dtype), weight, weight, shape[0], shape[1], size, groups, 1e-6),
        )
    yield Trial(_aten.native_layer_norm.default, (_spec((2, 64, 1152), dtype), (1152,), None, None, 1e-6))


def convolution(dtype: torch.dtype, shape: tuple[int, ...], filters: int) -> Iterator[Trial]:
    """A 3-tap convolution with `shape[2]` output frames, and its three gradients."""
    batch, channels, frames, height, width = shape
    x = _spec((batch, channels, frames + 2, height, width), dtype)
    weight = _spec((filters, channels, 3, 3, 3), dtype)
    how = ((1, 1, 1), (0, 1, 1), (1, 1, 1), False, (0, 0, 0), 1)
    yield Trial(_aten.convolution.default, (x, weight, _spec((filters,), dtype), *how))
    grad = _spec((batch, filters, frames, height, width), dtype)
    yield Trial(_aten.convolution_backward.default, (grad, x, weight, (filters,), *how, (True, True, True)))


def _spec(shape: tuple[int, ...], dtype: torch.dtype) -> Spec:
    return spec_of(torch.empty(shape, dtype=dtype, device="meta"))
