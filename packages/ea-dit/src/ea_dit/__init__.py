"""ea-dit: the denoiser of EasyAnimate V2 and its training loss."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .network.config import MotionConfig, TransformerConfig
    from .network.init import initialize_weights
    from .network.model import Transformer3DModel
    from .training.loss import add_noise, training_loss
    from .weights.convert import load_checkpoint

__all__ = [
    "Transformer3DModel",
    "TransformerConfig",
    "MotionConfig",
    "training_loss",
    "add_noise",
    "initialize_weights",
    "load_checkpoint",
]

_HOMES = {
    "network.config": ("MotionConfig", "TransformerConfig"),
    "network.init": ("initialize_weights",),
    "network.model": ("Transformer3DModel",),
    "training.loss": ("add_noise", "training_loss"),
    "weights.convert": ("load_checkpoint",),
}


def __getattr__(name: str) -> object:
    # Lazy, so that the host can import ea_dit.plugin (for `ea --help`, say) without torch.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
