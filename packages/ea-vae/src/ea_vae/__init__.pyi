from .network.config import VaeConfig
from .network.model import AutoencoderKLMagvit

__all__ = ["AutoencoderKLMagvit", "VaeConfig"]
