"""A local plugin with one small denoiser that a model folder can hold. Loaded as `--plugin` files are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import DenoiserRecord


class SmallModel(ModelMixin, ConfigMixin):
    """Adapted layers under the names of conftest's small denoiser, as far as a pipeline's call needs them."""

    @register_to_config
    def __init__(self, in_channels: int = 4, caption_channels: int = 8, width: int = 8) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.mix = nn.Conv1d(width, width, 1)
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"to_q": nn.Linear(caption_channels, width)}) for _ in range(2)]
        )
        self.proj_out = nn.Linear(width, in_channels)

    def forward(self, hidden_states: Tensor, timestep: Any, encoder_hidden_states: Tensor, **_: Any) -> Any:
        frames = hidden_states.transpose(1, 2).flatten(0, 1)  # (B * T, C, H, W)
        x = self.proj_in(self.conv_in(frames)).flatten(2)  # (B * T, D, H * W)
        x = self.mix(x).transpose(1, 2)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            text = block["to_q"](encoder_hidden_states).mean(1)  # (B, D)
            x = torch.tanh(x + text.repeat_interleave(hidden_states.shape[2], 0)[:, None])
        x = self.proj_out(x).transpose(1, 2).reshape(frames.shape)
        return SimpleNamespace(sample=x.unflatten(0, (hidden_states.shape[0], -1)).transpose(1, 2))


@hookimpl
def ea_denoisers() -> list[DenoiserRecord]:
    return [DenoiserRecord("small", "for tests", lambda: SmallModel, class_names=("SmallModel",))]
