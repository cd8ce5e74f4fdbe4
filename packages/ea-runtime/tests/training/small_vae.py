"""A local plugin with a small VAE and a small denoiser, for tests of what a run starts from and trains on."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import DenoiserRecord, VaeRecord


class SmallVae(ModelMixin, ConfigMixin):
    """9 frames <-> 3 latent frames, 8x in space; the latents are means of pixels times `gain`."""

    @register_to_config
    def __init__(self, channels: int = 4, scaling_factor: float = 0.5) -> None:
        super().__init__()
        if channels < 3:
            raise ValueError(f"`channels` must be 3 or more, got {channels}")
        self.gain = nn.Parameter(torch.ones(channels))

    def encode_video(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        time = 1 if frames.shape[2] == 1 else 3
        pooled = nn.functional.avg_pool3d(frames, (time, 8, 8))  # B 3 t h w
        mean = torch.cat([pooled, pooled[:, : len(self.gain) - 3]], dim=1) * self.gain.view(1, -1, 1, 1, 1)
        return mean + 1e-3 * torch.randn(mean.shape, generator=generator)


class SmallDenoiser(SmallVae):
    """Another class of the same weights."""


@hookimpl
def ea_vaes() -> list[VaeRecord]:
    return [VaeRecord("small-vae", "for tests", lambda: SmallVae, class_names=("SmallVae",))]


@hookimpl
def ea_denoisers() -> list[DenoiserRecord]:
    return [
        DenoiserRecord("small-denoiser", "for tests", lambda: SmallDenoiser, class_names=("SmallDenoiser",))
    ]
