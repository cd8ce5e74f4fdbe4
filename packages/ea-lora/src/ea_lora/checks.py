"""Checks of a file's tensors before a layer is made of them; needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ea_lora.keys import Part
from ea_lora.layer import FLOATS, WHOLES, Layer
from ea_lora.roles import Role, parse_name, relative_of_lora
from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote

#: no weight changes by more than float16 can hold; what training gives is below 10
_LARGEST_CHANGE = 65504.0


@dataclass(frozen=True, slots=True)
class Grouped:
    """A file's tensors by layer and role, sorted. notes: lines for the user about what was left out."""

    layers: Mapping[str, Mapping[Role, Tensor]]
    notes: tuple[str, ...] = ()


def group_tensors(tensors: Mapping[str, Tensor], label: str) -> Grouped:
    """Tensors by layer. Additions to a module besides the matrices (`diff_b`, biases) are left out if all zero.

    Raises UserError for a file of something else, of several adapters, with two tensors for one role, or with
    additions that are not zero.
    """
    grouped: dict[str, dict[Role, Tensor]] = {}
    strangers: list[str] = []
    extras: list[str] = []
    adapters: set[str] = set()
    for key in sorted(tensors):
        found, method = parse_name(key), relative_of_lora(key)
        if method is not None:
            raise UserError(f"{label} holds {quote(key)}, which is {method}; only plain LoRA can be used")
        if found is None:
            strangers.append(key)
        elif found.role == "extra":
            extras.append(key)
        elif found.role in grouped.setdefault(found.layer, {}):
            raise UserError(
                f"{label} holds {quote(key)}, a second {found.role} for {quote(found.layer)}; save one adapter alone"
            )
        else:
            grouped[found.layer][found.role] = tensors[key]
        if found is not None and found.adapter is not None:
            adapters.add(found.adapter)
    if not any(role != "alpha" for roles in grouped.values() for role in roles):
        rest = sorted([*strangers, *extras])
        first = f", first {quote(rest[0])}" if rest else ""
        raise UserError(f"{label} holds no LoRA: {len(tensors)} tensors{first}; is it a whole model's file?")
    if len(adapters) > 1:
        shown = " and ".join(quote(name) for name in sorted(adapters)[:3])
        raise UserError(f"{label} holds {len(adapters)} adapters, {shown}; save one adapter alone")
    if strangers:
        raise UserError(
            f"{label} holds {len(strangers)} tensors that are no part of a LoRA, first "
            f"{quote(strangers[0])}; it was not made for this or is damaged"
        )
    return Grouped(grouped, _without_extras(extras, tensors, label))


def _without_extras(extras: Sequence[str], tensors: Mapping[str, Tensor], label: str) -> tuple[str, ...]:
    for key in extras:
        if bool(tensors[key].any()):
            raise UserError(
                f"{label} holds {quote(key)}, which adds to a weight or bias beside the matrices and is not zero; "
                "only plain LoRA can be used"
            )
    if not extras:
        return ()
    if len(extras) == 1:
        return (f"{quote(extras[0])} is all zero and left out: it would add nothing",)
    kinds = ", ".join(sorted({key.rpartition(".")[2] for key in extras}))
    return (f"{len(extras)} tensors of zeros ({kinds}) left out: they would add nothing",)


def make_layer(name: str, part: Part, path: str, roles: Mapping[Role, Tensor], label: str) -> Layer:
    """A layer of its tensors. Raises UserError for half a layer, other types, NaN, other shapes, rank 0, alpha."""
    where = f"{label}: layer {quote(name)}"
    for role in ("down", "up"):
        if role not in roles:
            raise UserError(f"{where} has no {role} matrix; the file is damaged, copy or download it again")
    for role, tensor in roles.items():
        if tensor.dtype not in (FLOATS if role != "alpha" else (*FLOATS, *WHOLES)):
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
    layer = Layer(name, part, path, down, up, alpha)
    check_bound(layer, where)
    return layer


def check_bound(layer: Layer, where: str) -> None:
    """Raises UserError for a layer that no training gives: a weight could leave float16's range."""
    if _bound(layer) > _LARGEST_CHANGE:
        raise UserError(f"{where} would change weights by up to {_bound(layer):.3g}; the file is damaged")


def _bound(layer: Layer) -> float:
    """An upper bound of the numbers in the layer's delta."""
    return layer.scale * layer.rank * float(layer.down.abs().max()) * float(layer.up.abs().max())
