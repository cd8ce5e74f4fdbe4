"""A prompt prepared for one block's cross-attention in sampling: no padding, and short texts are folded.

Rows of equal length are a group. The scores of a token x against S keys are x Wq' K', with h * S columns: where S is at
most half of a head's channels, Wq' K' and V' Wo', made once a prompt, take the place of two linears and their D x D
multiply-adds per token. Against one key the softmax is 1, so only a vector to add is left. Equal in real numbers.

Shapes: N rows of text; x (N, Q, D), D wide; S text tokens, d channels of each of the h heads.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .attention import Attention
from .linear import Linear
from .waiting import weights_of


class Whole(NamedTuple):
    """Keys and values (N, h, S, d): the attention runs as it is defined."""

    keys: Tensor
    values: Tensor

    def add_to(self, x: Tensor, layer: Attention) -> Tensor:
        """x (N, Q, D) plus its cross-attention."""
        return x + layer.attend(x, self.keys, self.values)


class Folded(NamedTuple):
    """Keys (N, D, h * S) with the queries' projection and scale in them, values (N, h * S, D) with the output's.

    `bias` (N, 1, h * S) is the share of the queries' bias.
    """

    keys: Tensor
    bias: Tensor
    values: Tensor

    def add_to(self, x: Tensor, layer: Attention) -> Tensor:
        scores = torch.baddbmm(self.bias, x, self.keys).unflatten(-1, (layer.num_heads, -1))  # (N, Q, h, S)
        return torch.baddbmm(x, scores.softmax(-1).flatten(2), self.values)


class OneToken(NamedTuple):
    """A vector that is added to every x, (N, 1, D)."""

    value: Tensor

    def add_to(self, x: Tensor, layer: Attention) -> Tensor:
        return x + self.value


Group = Whole | Folded | OneToken


class TextGroups(NamedTuple):
    """One block's prompt: its groups in the order of the rows, and their numbers of rows."""

    groups: tuple[Group, ...]
    rows: tuple[int, ...]

    def add_to(self, x: Tensor, layer: Attention) -> Tensor:
        """x (N, Q, D) plus its cross-attention by `layer`; of N / r shared rows, as many as r branches come out."""
        copies = sum(self.rows) // x.shape[0]
        x = x if copies == 1 else x.repeat(copies, 1, 1)
        parts = [
            group.add_to(part, layer) for group, part in zip(self.groups, x.split(self.rows), strict=True)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def group_text(layer: Attention, texts: list[Tensor]) -> TextGroups:
    """Texts (N, S, D'), each a group, prepared for `layer`."""
    return TextGroups(
        tuple(_shortest(layer, *layer.keys_values(text)) for text in texts),
        tuple(text.shape[0] for text in texts),
    )


def _shortest(layer: Attention, keys: Tensor, values: Tensor) -> Group:
    tokens, channels = keys.shape[2:]
    if tokens > channels // 2 or not _can_fold(layer):
        return Whole(keys, values)
    to_out = cast("nn.Linear", layer.to_out[0])
    with weights_of(to_out), weights_of(layer.to_q):
        return _folded(layer, to_out, keys, values)


def _folded(layer: Attention, to_out: nn.Linear, keys: Tensor, values: Tensor) -> Group:
    tokens, channels = keys.shape[2:]
    dtype = torch.promote_types(keys.dtype, torch.float32)
    out = to_out.weight.to(dtype).unflatten(1, (-1, channels))  # (D, h, d)
    folded = torch.einsum("nhsd,whd->nhsw", values.to(dtype), out)
    # The weights of a head sum to 1, so each head brings its share of the bias.
    folded = folded + to_out.bias.to(dtype) / layer.num_heads
    if tokens == 1:
        return OneToken(folded.sum(dim=1).to(keys.dtype))
    scaled = keys.to(dtype) * channels**-0.5
    query = layer.to_q.weight.to(dtype).unflatten(0, (-1, channels))  # (h, d, D)
    columns = torch.einsum("nhsd,hdw->nwhs", scaled, query).flatten(2)
    if layer.to_q.bias is None:
        bias = scaled.new_zeros(len(keys), 1, columns.shape[2])
    else:
        own = layer.to_q.bias.to(dtype).unflatten(0, (-1, channels))
        bias = torch.einsum("nhsd,hd->nhs", scaled, own).flatten(1)[:, None]
    return Folded(*(one.to(keys.dtype) for one in (columns, bias, folded.flatten(1, 2))))


def _can_fold(layer: Attention) -> bool:
    """True if the two linears are plain: no adapter's hook that does something, no other class, no dropout, and weights
    that are numbers (quantised ones are not)."""
    to_out, dropout = layer.to_out[0], layer.to_out[1]
    if layer.training and isinstance(dropout, nn.Dropout) and dropout.p:
        return False
    return all(_is_plain(linear) for linear in (layer.to_q, to_out))


def _is_plain(linear: nn.Module) -> bool:
    hooks = [*linear._forward_hooks.values(), *linear._forward_pre_hooks.values()]
    # a LoRA at weight 0 must give the bits of none
    is_number = type(linear.weight) is nn.Parameter and linear.weight.dtype.itemsize > 1
    is_linear = type(linear) in (nn.Linear, Linear) and is_number
    return is_linear and all(getattr(hook, "is_idle", False) for hook in hooks)
