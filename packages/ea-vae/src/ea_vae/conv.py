"""The one 3-D convolution of this VAE, and how its time axis is padded.

Shapes: B batch, C channels, T frames, H and W rows and columns.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Mode = Literal["causal", "slice", "single"]
"""How a pass treats time.

causal: MagViT. Frame 0 stands for itself, padding repeats it in front, and no output sees a later input.
slice: Slice VAE. Every frame of the piece is alike, zeros pad both ends.
single: Slice VAE's frame 0, coded by itself: padded as a slice, never enlarged in time.
"""


class CausalConv3d(nn.Conv3d):
    """3-D convolution whose time padding depends on the mode; keys are those of `nn.Conv3d`.

    Input (B, Cin, T, H, W), output (B, Cout, ceil(T / stride), ...) in every mode (kernel 3 in time).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: tuple[int, int, int] = (1, 1, 1),
        spatial_padding: int = 1,
    ) -> None:
        super().__init__(
            in_channels, out_channels, 3, stride=stride, padding=(0, spatial_padding, spatial_padding)
        )

    def forward(self, input: Tensor, mode: Mode = "causal") -> Tensor:
        x = input
        if mode == "causal":
            # cat gives F.pad(mode="replicate")'s values; its gradient is deterministic on CUDA too.
            first = x[:, :, :1]
            x = torch.cat([first, first, x], dim=2)  # B C T+2 H W
        else:
            x = F.pad(x, (0, 0, 0, 0, 1, 1))  # B C T+2 H W
        return super().forward(x)
