"""Group norm of the VAE, exact where channels are last.

torch's own kernel for channels that are last sums squares of all positions in float32 and subtracts the squared mean:
on a chunk of 256x256 its result is off by 8e-5, where the one for plain tensors is off by 5e-8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .rewrites import empty_like, is_last

#: elements that are summed at a time, and stay in the processor's cache
_BLOCK = 1 << 16


class GroupNorm(nn.GroupNorm):
    """(B, C, T, H, W) -> the same shape, normalised over the channels of a group and all positions."""

    def forward(self, input: Tensor) -> Tensor:
        if (
            input.ndim != 5
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or type(input) is not Tensor
            or input.device.type != "cpu"
            or input.dtype not in (torch.float32, torch.float64)
            or not is_last(input)
        ):
            return super().forward(input)
        out = empty_like(input, *input.shape)
        for x, target in zip(input.movedim(1, -1), out.movedim(1, -1), strict=True):
            rows = x.reshape(-1, x.shape[-1])  # T H W, C
            mean, variance = _moments(rows)
            mean, variance = mean.view(self.num_groups, -1), variance.view(self.num_groups, -1)
            middle = mean.mean(1, keepdim=True)
            spread = (variance + (mean - middle).square()).mean(1, keepdim=True)
            scale = torch.rsqrt(spread + self.eps).expand_as(mean).flatten() * self.weight
            shift = self.bias - middle.expand_as(mean).flatten() * scale
            torch.addcmul(shift, rows, scale, out=target.view(rows.shape))
        return out


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of rows (N, C): of blocks around their own means, then joined (Chan and others 1983)."""
    length = max(1, _BLOCK // rows.shape[1])
    deviation = rows.new_empty(min(length, len(rows)), rows.shape[1])
    means, squares, lengths = [], [], []
    for block in rows.split(length):
        mean = block.mean(0)
        of_block = torch.sub(block, mean, out=deviation[: len(block)])
        means.append(mean)
        squares.append(of_block.mul_(of_block).sum(0))
        lengths.append(len(block))
    counts = rows.new_tensor(lengths).unsqueeze(1)
    stacked = torch.stack(means)
    mean = (stacked * counts).sum(0) / len(rows)
    return mean, (torch.stack(squares) + counts * (stacked - mean).square()).sum(0) / len(rows)
