"""ea-dit: the denoiser of EasyAnimate V2 and its training loss."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .network.config import MotionConfig, TransformerConfig
    from .network.init import initialize_weights
    from .network.model import TextContext, Transformer3DModel
    from .training.loss import add_noise, training_loss
    from .weights.convert import load_checkpoint

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
    "Transformer3DModel": "network.model",
    "TextContext": "network.model",
    "TransformerConfig": "network.config",
    "MotionConfig": "network.config",
    "training_loss": "training.loss",
    "add_noise": "training.loss",
    "initialize_weights": "network.init",
    "load_checkpoint": "weights.convert",
}


def __getattr__(name: str) -> object:
    # Lazy, so that the host can import ea_dit.plugin (for `ea --help`, say) without torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
