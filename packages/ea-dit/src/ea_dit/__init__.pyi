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
