"""Reading checkpoints that EasyAnimate's VAE training writes, for which our keys are the same but wrapped.

Published checkpoints need none of this. A training checkpoint (PyTorch Lightning) keeps the weights under
`state_dict`, together with those of the losses (`loss.discriminator...`, `loss.perceptual_loss...`), and
wrappers may put a prefix before every name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .network.model import AutoencoderKLMagvit

logger = logging.getLogger(__name__)

WRAPPER_KEYS = ("state_dict", "module", "model")
PREFIXES = ("module.", "_orig_mod.", "first_stage_model.", "vae.", "model.")
DROPPED_PREFIXES = ("loss.", "model_ema.")


def convert_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The VAE's own weights out of what a checkpoint file holds.

    Args:
        checkpoint: name -> tensor, possibly wrapped in one of `WRAPPER_KEYS`, prefixed by some of `PREFIXES`,
            and mixed with the losses' weights.

    Returns:
        name -> tensor with the names of `AutoencoderKLMagvit`; the tensors themselves are not copied.

    Raises:
        ValueError: no weights of this VAE are in it.
    """
    for key in WRAPPER_KEYS:
        if isinstance(checkpoint.get(key), Mapping):
            return convert_state_dict(checkpoint[key])
    weights: dict[str, Tensor] = {}
    dropped: set[str] = set()
    for key, value in checkpoint.items():
        name = _strip(key)
        if name.startswith(DROPPED_PREFIXES) or not isinstance(value, Tensor):
            dropped.add(name.split(".")[0])
        else:
            weights[name] = value
    if not any(name.startswith(("encoder.", "decoder.")) for name in weights):
        some = ", ".join(list(checkpoint)[:3]) or "nothing"
        raise ValueError(f"checkpoint must hold encoder.* or decoder.* weights, got {some}; is it a VAE's?")
    if dropped:
        logger.info("left out of the VAE's checkpoint: %s", ", ".join(sorted(dropped)))
    return weights


def _strip(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Weights of a `.safetensors` file, or of a pickled one read with `weights_only` (no code of it runs).

    Raises:
        ValueError: the file is missing, holds other things than tensors and plain values, or no VAE.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`path` must be a checkpoint file, got {path}, which does not exist")
    if path.suffix == ".safetensors":
        return convert_state_dict(load_file(path))
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path.name} cannot be read as plain tensors: {reason}; save its state_dict"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f"{path.name} must hold a mapping of names to tensors, got {type(checkpoint).__name__}"
        )
    return convert_state_dict(checkpoint)


def load_weights(vae: AutoencoderKLMagvit, weights: Mapping[str, Tensor]) -> None:
    """Load converted weights into `vae`, whole.

    Raises:
        ValueError: names are missing or left over, or shapes differ (the config is another model's).
    """
    own = vae.state_dict()
    missing = sorted(own.keys() - weights.keys())
    extra = sorted(weights.keys() - own.keys())
    differing = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    for kind, keys in (
        ("lacks", missing),
        ("has unknown", extra),
        ("has other shapes for", sorted(differing)),
    ):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(
                f"checkpoint does not fit the config: it {kind} {', '.join(keys[:3])}{more}; check the config"
            )
    vae.load_state_dict(dict(weights))
