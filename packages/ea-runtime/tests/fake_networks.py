"""A local plugin with two small networks, for tests of model folders, loaded like a `--plugin` file."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import DenoiserRecord, VaeRecord


class FakeVae(ModelMixin, ConfigMixin):
    """One linear layer."""

    @register_to_config
    def __init__(self, width: int = 8, layers_per_block: int = 1, scaling_factor: float = 0.18215) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers_per_block))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class FakeDenoiser(ModelMixin, ConfigMixin):
    """One of each kind of tensor: drawn and tied parameters, saved and unsaved buffers, an attribute."""

    @register_to_config
    def __init__(self, width: int = 8, num_layers: int = 2, max_len: int = 16, mode: str = "plain") -> None:
        super().__init__()
        if mode not in ("plain", "reads"):
            raise ValueError(f"`mode` must be plain or reads, got {mode!r}")
        self.table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.first = nn.Embedding(max_len, width)
        self.last = nn.Linear(width, max_len, bias=False)
        self.last.weight = self.first.weight
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))
        positions = torch.arange(max_len)[:, None] / torch.arange(1, width + 1)
        self.register_buffer("saved", positions.sin())
        self.register_buffer("unsaved", positions.cos(), persistent=False)
        self.attribute = [positions.tanh()]
        if mode == "reads":
            self.scale = float(positions.max())  # has no value on the meta device

    def forward(self, ids: Tensor) -> Tensor:
        x = self.first(ids) + self.table.sum(0)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        x = x + self.saved[ids] + self.unsaved[ids] + self.attribute[0].to(x)[ids]
        return self.last(x)


@hookimpl
def ea_vaes() -> list[VaeRecord]:
    return [VaeRecord("fake-vae", "for tests", lambda: FakeVae, class_names=("FakeVae",))]


@hookimpl
def ea_denoisers() -> list[DenoiserRecord]:
    return [DenoiserRecord("fake-denoiser", "for tests", lambda: FakeDenoiser, class_names=("FakeDenoiser",))]
