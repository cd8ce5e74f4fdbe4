"""The smallest reproduction of oneDNN's wrong weight gradient in bf16: needs nothing but torch.

    python tools/bf16_convolution.py

On an Intel CPU with AMX, torch 2.13.0, the third column is nan for some shapes; elsewhere all columns are about
0.002. A lowered ONEDNN_MAX_CPU_ISA (AVX512_CORE_BF16, AVX2) shows which instruction set is at fault. `ea doctor`
tries these shapes among others, and docs/number-formats.md has the remedy for training. Exits with 1 if a shape is
wrong.
"""

from __future__ import annotations

import sys

import torch
from torch.nn.functional import conv3d


def errors(channels: int, filters: int, frames: int, size: int) -> list[float]:
    """Relative errors in bf16 against float32: output, input gradient, weight gradient."""
    torch.manual_seed(0)
    x = torch.randn(1, channels, frames + 2, size, size).bfloat16()
    weight = (torch.randn(filters, channels, 3, 3, 3) / (27 * channels) ** 0.5).bfloat16()
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [tensor.to(dtype).requires_grad_(True) for tensor in (x, weight)]
        out = conv3d(leaves[0], leaves[1], padding=(0, 1, 1))
        gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(dtype)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, gradient)])
    return [float((low.float() - high).norm() / high.norm()) for low, high in zip(*found, strict=True)]


def main() -> int:
    """Prints one line per shape; returns 1 if one is wrong."""
    named = {"cpu_name", "amx_bf16", "avx512_bf16"}
    found = getattr(torch.cpu, "get_capabilities", dict)()
    print("torch", torch.__version__, {name: value for name, value in found.items() if name in named})
    is_wrong = False
    for channels in (64, 128):
        for filters in (24, 32, 48, 64, 128):
            for frames in (1, 3, 5):
                row = errors(channels, filters, frames, 32)
                fails = not all(error < 0.05 for error in row)
                is_wrong |= fails
                told = "  ".join(f"{error:8.4f}" for error in row)
                print(
                    f"{channels:4} channels {filters:4} filters {frames} frames 32x32: {told}{'  WRONG' * fails}"
                )
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main())
