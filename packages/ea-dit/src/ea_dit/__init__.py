"""ea-dit: the denoiser of EasyAnimate V2 and its training loss."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import MotionConfig, TransformerConfig
    from .convert import load_checkpoint
    from .init import initialize_weights
    from .loss import add_noise, training_loss
    from .model import TextContext, Transformer3DModel

__all__ = [
    "Transformer3DModel",
    "TextContext",
    "TransformerConfig",
    "MotionConfig",
    "training_loss",
    "add_noise",
    "initialize_weights",
    "load_checkpoint",
]

_HOMES = {
    "Transformer3DModel": "model",
    "TextContext": "model",
    "TransformerConfig": "config",
    "MotionConfig": "config",
    "training_loss": "loss",
    "add_noise": "loss",
    "initialize_weights": "init",
    "load_checkpoint": "convert",
}


def __getattr__(name: str) -> object:
    # Lazy, so that the host can import ea_dit.plugin (for `ea --help`, say) without torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
