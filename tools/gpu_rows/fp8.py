"""Linears that multiply in fp8 (e4m3): rows of the input and of the weight are scaled to its range as they come.

For measuring what the card's fp8 units bring. The 16-bit weights stay, so that the plain network is there as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
#: narrower layers stay as they are: scaling costs more than the product saves
_MIN_WIDTH, _MIN_WIDTH_TOY = 256, 16


def scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> the same in fp8, and the scale of each row (N, 1)."""
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / torch.finfo(FP8).max
    return (x * (1 / scale).to(x.dtype)).to(
        FP8
    ), scale  # in 16 bits it rounds to 450 at most, which is 448 in fp8


class Fp8Linear(nn.Linear):
    """A Linear whose class was changed, with its weight in fp8 as well."""

    fp8_weight: Tensor  # (I, O)
    fp8_scale: Tensor  # (1, O)
    plain_class: type[nn.Linear]

    def forward(self, input: Tensor) -> Tensor:
        rows, scale = scaled(input.reshape(-1, input.shape[-1]))
        if rows.is_cuda:
            out = torch._scaled_mm(
                rows,
                self.fp8_weight,
                scale,
                self.fp8_scale,
                bias=self.bias,
                out_dtype=input.dtype,
                use_fast_accum=True,
            )
        else:
            out = (rows.float() @ self.fp8_weight.float()) * scale * self.fp8_scale
            out = (out if self.bias is None else out + self.bias).to(input.dtype)
        return out.reshape(*input.shape[:-1], self.out_features)


@contextlib.contextmanager
def linears(model: nn.Module) -> Iterator[None]:
    """The blocks' linears in fp8 for as long as this lasts."""
    least = _MIN_WIDTH if next(model.parameters()).is_cuda else _MIN_WIDTH_TOY
    blocks: Any = model.get_submodule("transformer_blocks")
    layers: list[Any] = [
        m
        for m in blocks.modules()
        # the card's units want multiples of 16
        if isinstance(m, nn.Linear)
        and min(m.weight.shape) >= least
        and not any(n % 16 for n in m.weight.shape)
    ]
    with torch.no_grad():
        for layer in layers:
            weight, scale = scaled(layer.weight)
            layer.register_buffer("fp8_weight", weight.t(), persistent=False)
            layer.register_buffer("fp8_scale", scale.t().contiguous(), persistent=False)
            layer.plain_class = type(layer)
            layer.__class__ = Fp8Linear
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = layer.plain_class
            del layer.fp8_weight, layer.fp8_scale, layer.plain_class


@contextlib.contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """The plain linears, within `linears`."""
    held: list[Any] = [m for m in model.modules() if isinstance(m, Fp8Linear)]
    try:
        for layer in held:
            layer.__class__ = layer.plain_class
        yield
    finally:
        for layer in held:
            layer.__class__ = Fp8Linear
