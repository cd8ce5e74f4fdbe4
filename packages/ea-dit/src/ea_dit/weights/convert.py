"""Checkpoints saved by other programs -> the published tensor names.

Training scripts wrap models (data parallel, compiled, sharded) and put the weights next to other things; these
adapters unwrap them. Weights that carry the published names need nothing: use `from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
# Where training programs keep the weights inside a checkpoint, the averaged ones first.
WEIGHT_KEYS = (
    "ema_state_dict",
    "state_dict_ema",
    "state_dict",
    "model_state_dict",
    "module",
    "model",
    "transformer",
)
# Path parts that wrappers insert anywhere in a name ...
WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# ... and prefixes that they put in front of every name.
WRAPPER_PREFIXES = ("module.", "model.", "transformer.", "denoiser.")


def unwrap_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the weights in a loaded checkpoint: {"state_dict": {...}, "epoch": 3} -> {...}, to any depth.

    Raises:
        ValueError: if no tensors are found, in one line.
    """
    for key in WEIGHT_KEYS:
        if isinstance(checkpoint.get(key), Mapping):
            return unwrap_checkpoint(checkpoint[key])
    tensors = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"checkpoint must hold tensors, or one of {', '.join(WEIGHT_KEYS)},"
            f" got keys {sorted(map(str, checkpoint))[:5]}; pass the file that training wrote"
        )
    return tensors


def strip_wrappers(weights: Mapping[str, T]) -> dict[str, T]:
    """Remove wrappers' parts from names: "module._orig_mod.proj_out.bias" -> "proj_out.bias".

    A prefix goes only if every name has it. Raises ValueError if two names would become one.
    """
    names = [".".join(part for part in name.split(".") if part not in WRAPPER_PARTS) for name in weights]
    while prefix := next((p for p in WRAPPER_PREFIXES if names and all(n.startswith(p) for n in names)), ""):
        names = [name.removeprefix(prefix) for name in names]
    seen: dict[str, str] = {}
    for old, new in zip(weights, names, strict=True):
        if new in seen:
            raise ValueError(
                f"checkpoint must name each tensor once, got '{seen[new]}' and '{old}' for '{new}'; drop one"
            )
        seen[new] = old
    return {new: weights[old] for new, old in seen.items()}


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a .safetensors, .pt, .pth, .ckpt or .bin file as a state dict of `Transformer3DModel`, on the CPU.

    Pickled files are read with `weights_only=True`, so that no code in them runs.

    Raises:
        ValueError: if the file holds no tensors, in one line.
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return strip_wrappers(load_file(path))
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"checkpoint '{path}' must hold a dictionary, got {type(checkpoint).__name__}")
    return strip_wrappers(unwrap_checkpoint(checkpoint))
