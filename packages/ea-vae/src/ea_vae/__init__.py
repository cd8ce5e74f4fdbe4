"""The video VAE of EasyAnimate V2."""

from __future__ import annotations

from .config import VaeConfig
from .model import AutoencoderKLMagvit

__all__ = ["AutoencoderKLMagvit", "VaeConfig"]
