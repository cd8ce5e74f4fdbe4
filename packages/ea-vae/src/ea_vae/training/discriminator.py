"""Patch discriminators: one for frames, one for clips.

Shapes: B batch, C channels, T frames, H and W rows and columns; frames in -1..1. Logits: above 0 for a patch
taken as real.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

LEAK = 0.2


class FrameDiscriminator(nn.Module):
    """PatchGAN (Isola et al., 2017): each logit looks at one patch of one frame, 70 x 70 pixels for 3 layers.

    Differs from EasyAnimate: group norm instead of batch norm, whose statistics would mix the samples of a
    batch and change with the number of processes and of micro-batches.
    """

    def __init__(self, in_channels: int = 3, channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(LEAK)]
        for i, (before, width) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < num_layers else 1
            layers += [nn.Conv2d(before, width, 4, stride, 1, bias=False), _norm(width), nn.LeakyReLU(LEAK)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)
        self.min_size = 3 * 2**num_layers  # pixels; the last two kernels shrink their input by one each

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). Returns logits (N, 1, H', W')."""
        return self.layers(x)


class ClipDiscriminator(nn.Module):
    """Residual blocks of 3-D convolutions with blurred down-sampling, EasyAnimate's for clips."""

    def __init__(self, in_channels: int = 3, channels: Sequence[int] = (64, 128, 256)) -> None:
        super().__init__()
        self.conv_in = nn.Conv3d(in_channels, channels[0], 3, 2, 1)
        before = [channels[0], *channels[:-1]]
        self.blocks = nn.ModuleList(
            _ClipBlock(one, other, downsamples=i < len(channels) - 1)
            for i, (one, other) in enumerate(zip(before, channels, strict=True))
        )
        self.conv_out = nn.Conv3d(channels[-1], 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, T, H, W). Returns logits (B, 1, T', H', W')."""
        x = self.conv_in(x)
        for block in self.blocks:
            x = block(x)
        return self.conv_out(x)


class _ClipBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, downsamples: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(in_channels), _norm(out_channels)
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, 1, 1)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, 1, 1)
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1)
        self.resample: Callable[[Tensor], Tensor] = blur_down if downsamples else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(self.norm1(x), LEAK))
        h = self.conv2(self.resample(F.leaky_relu(self.norm2(h), LEAK)))
        return (h + self.shortcut(self.resample(x))) / math.sqrt(2)


class Discriminator(nn.Module):
    """Both: on single frames, and on whole clips.

    channels: width of the frames' first layer. num_layers: its strided layers. clip_channels: widths of the
    clips' blocks. Differs from EasyAnimate: a picture, which has no motion to judge, is shown to the first only.
    """

    def __init__(
        self, channels: int = 64, num_layers: int = 3, clip_channels: Sequence[int] = (64, 128, 256)
    ) -> None:
        super().__init__()
        self.frames = FrameDiscriminator(channels=channels, num_layers=num_layers)
        self.clips = ClipDiscriminator(channels=clip_channels)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (B, 3, T, H, W) in -1..1. Returns the frames' logits and, if T > 1, the clips'.

        Raises ValueError for frames smaller than the first one's kernels need.
        """
        if min(x.shape[3:]) < self.frames.min_size:
            size = " x ".join(str(edge) for edge in x.shape[3:])
            raise ValueError(
                f"frames must be at least {self.frames.min_size} pixels high and wide for a discriminator of "
                f"this depth, got {size}; take larger ones or fewer layers"
            )
        logits = [self.frames(rearrange(x, "b c t h w -> (b t) c h w"))]
        if x.shape[2] > 1:
            logits.append(self.clips(x))
        return logits


def blur_down(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B, C, ceil(T / 2), ceil(H / 2), ceil(W / 2)): 1-2-1 along each axis, every second kept."""
    channels = x.shape[1]
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = torch.einsum("i,j,k->ijk", taps, taps, taps).expand(channels, 1, 3, 3, 3)
    return F.conv3d(x, kernel, stride=2, padding=1, groups=channels)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)
