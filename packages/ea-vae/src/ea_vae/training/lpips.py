"""LPIPS: the perceptual distance of two pictures, by VGG16's features (Zhang et al., 2018).

Shapes: pictures (N, 3, H, W) in -1..1, H and W 16 or more. Names of tensors: VGG16's as torchvision has them
(`features.0.weight`, ...), the linear heads' as the authors have them (`lin0.model.1.weight`, ...).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: widths of VGG16's convolutions; "pool" halves H and W
_LAYERS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
#: mean and deviation of ImageNet's colours, for pictures in -1..1
_MEAN = (-0.030, -0.088, -0.188)
_STD = (0.458, 0.448, 0.450)
MIN_SIZE = 16


class LPIPS(nn.Module):
    """Two pictures -> distance (N,): squared differences of unit features of five layers, weighted by channel.

    Fresh, it holds random weights, which measure nothing: load some (see lpips_weights.py). It stays in eval
    mode and its weights get no gradients; gradients flow to the pictures.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        self.stages: list[list[str]] = [[]]  # keys of the convolutions between two poolings
        index, width = 0, 3
        for layer in _LAYERS:
            if isinstance(layer, str):
                self.stages.append([])
                index += 1
                continue
            self.features[str(index)] = nn.Conv2d(width, layer, 3, padding=1)
            self.stages[-1].append(str(index))
            index, width = index + 2, layer  # a ReLU, which has no weights, takes a number too
        for i, stage in enumerate(self.stages):
            channels = self.get_parameter(f"features.{stage[-1]}.weight").shape[0]
            head = nn.Conv2d(channels, 1, 1, bias=False)
            self.add_module(f"lin{i}", nn.ModuleDict({"model": nn.ModuleDict({"1": head})}))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in eval mode, whatever the mode of the module around it."""
        return super().train(False)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """one, other: (N, 3, H, W) in -1..1. Returns (N,). Raises ValueError for pictures under 16 pixels."""
        if min(one.shape[2:]) < MIN_SIZE:
            size = " x ".join(str(edge) for edge in one.shape[2:])
            raise ValueError(
                f"pictures must be at least {MIN_SIZE} pixels high and wide for LPIPS, got {size}"
            )
        distance = torch.zeros(len(one), device=one.device)
        mean, std = (one.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        pair = (torch.cat([one, other]) - mean) / std
        for i, stage in enumerate(self.stages):
            if i > 0:
                pair = F.max_pool2d(pair, 2)
            for key in stage:
                pair = F.relu(self.features[key](pair))
            unit = F.normalize(pair.float(), dim=1, eps=1e-10)
            difference = (unit[: len(one)] - unit[len(one) :]).square()
            weight = self.get_parameter(f"lin{i}.model.1.weight")  # 1 C 1 1
            distance = distance + (difference * weight).sum(1).mean((1, 2))
        return distance
