"""Checks of a file's tensors before a layer is made of them; needs no model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ea_lora.keys import Role, relative_of_lora, split_key, split_name
from ea_lora.layer import FLOATS, Layer
from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote

#: no weight changes by more than float16 can hold; what training gives is below 10
_LARGEST_CHANGE = 65504.0


def group_tensors(tensors: Mapping[str, Tensor], label: str) -> dict[str, dict[Role, Tensor]]:
    """Tensors by layer, sorted. Raises UserError for a file of something else."""
    is_flat = any(key.startswith(("lora_unet_", "lora_te")) for key in tensors)
    if any(".lora_A." in key for key in tensors) and (
        is_flat or any(".lora_down." in key for key in tensors)
    ):
        raise UserError(
            f"{label} mixes peft's names (lora_A) with kohya's (lora_unet_, lora_down); only half of it was renamed"
        )
    grouped: dict[str, dict[Role, Tensor]] = {}
    strangers: list[str] = []
    for key in sorted(tensors):
        found = split_key(key)
        method = relative_of_lora(key)
        if method is not None:
            raise UserError(f"{label} holds {quote(key)}, which is {method}; only plain LoRA can be used")
        if found is None:
            strangers.append(key)
        else:
            grouped.setdefault(found[0], {})[found[1]] = tensors[key]
    if not grouped:
        first = f", first {quote(strangers[0])}" if strangers else ""
        raise UserError(
            f"{label} holds no LoRA: {len(strangers)} tensors{first}; is it a whole model's file?"
        )
    if strangers:
        raise UserError(
            f"{label} holds {len(strangers)} tensors that are no part of a LoRA, first "
            f"{quote(strangers[0])}; it was not made for this or is damaged"
        )
    return grouped


def make_layer(name: str, roles: Mapping[Role, Tensor], label: str) -> Layer:
    """A layer of its tensors. Raises UserError for half a layer, other types, NaN, other shapes, rank 0, alpha."""
    where = f"{label}: layer {quote(name)}"
    for role in ("down", "up"):
        if role not in roles:
            raise UserError(
                f"{where} has no lora_{role}.weight; the file is damaged, copy or download it again"
            )
    for role, tensor in roles.items():
        if tensor.dtype not in FLOATS:
            raise UserError(f"{where}: {role} must be of 16-bit floats or wider, got {str(tensor.dtype)[6:]}")
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{where}: {role} holds NaN or infinity; training went wrong, use an earlier save"
            )
    down, up, alpha = roles["down"], roles["up"], roles.get("alpha")
    for role, tensor in (("down", down), ("up", up)):
        if tensor.ndim < 2 or any(size != 1 for size in tensor.shape[2:]):
            raise UserError(
                f"{where}: {role} must be a matrix (or end in dimensions of 1), got shape "
                f"{list(tensor.shape)}; only Linear and 1x1 convolutions can be adapted"
            )
    if down.shape[0] == 0 or up.shape[1] == 0:
        raise UserError(f"{where} has rank 0, so it would do nothing; train with a rank of 1 or more")
    if down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        raise UserError(
            f"{where}: down {list(down.shape)} must be (rank, inputs) and up {list(up.shape)} "
            "(outputs, rank) of one rank; the file is damaged"
        )
    if alpha is not None:
        if alpha.numel() != 1:
            raise UserError(
                f"{where}: alpha must be one number, got shape {list(alpha.shape)}; the file is damaged"
            )
        if float(alpha) <= 0:
            raise UserError(f"{where}: alpha must be above 0, got {float(alpha):g}; the file is damaged")
        alpha = alpha.reshape(())
    layer = Layer(name, *split_name(name), down, up, alpha)
    check_bound(layer, where)
    return layer


def check_bound(layer: Layer, where: str) -> None:
    """Raises UserError for a layer that no training gives: a weight could leave float16's range."""
    if _bound(layer) > _LARGEST_CHANGE:
        raise UserError(f"{where} would change weights by up to {_bound(layer):.3g}; the file is damaged")


def _bound(layer: Layer) -> float:
    """An upper bound of the numbers in the layer's delta."""
    return layer.scale * layer.rank * float(layer.down.abs().max()) * float(layer.up.abs().max())
