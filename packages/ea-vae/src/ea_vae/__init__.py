"""ea-vae: the video VAE of EasyAnimate V2."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .network.config import VaeConfig
    from .network.model import AutoencoderKLMagvit

__all__ = ["AutoencoderKLMagvit", "VaeConfig"]

_HOMES = {
    "network.config": ("VaeConfig",),
    "network.model": ("AutoencoderKLMagvit",),
}


def __getattr__(name: str) -> object:
    # Lazy, so that the host can import ea_vae.plugin (for `ea --help`, say) without torch.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
