"""The one attention of this package, and the feed-forward layers; parameter names are diffusers' own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dispatch import Dispatch, scaled_attention
from .linear import Linear

MASKED_BIAS = -10000.0  # what V2 adds to the scores of padding tokens; representable in float16


class Attention(nn.Module):
    """Multi-head attention over scaled_dot_product_attention: no scores are kept.

    Args:
        width: channels of the queries and of the output.
        num_heads: heads of `inner_width / num_heads` channels.
        inner_width: channels inside, `width` by default.
        context_width: channels of the keys' and values' source, `width` by default.
        bias: give queries, keys and values a bias; the output always has one.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        inner_width: int | None = None,
        context_width: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner_width = inner_width or width
        context_width = context_width or width
        self.num_heads = num_heads
        self.to_q = Linear(width, inner_width, bias=bias)
        self.to_k = Linear(context_width, inner_width, bias=bias)
        self.to_v = Linear(context_width, inner_width, bias=bias)
        self.to_out = nn.ModuleList([Linear(inner_width, width), nn.Dropout(dropout)])

    #: the backend that computes it; None: torch's own
    dispatch: Dispatch | None = None

    @property
    def num_channels(self) -> int:
        """Channels of a head."""
        return self.to_q.out_features // self.num_heads

    def _heads(self, x: Tensor) -> Tensor:
        """(N, S, D) -> (N, heads, S, D/heads), a view."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(N, S, context_width) -> keys and values, each (N, heads, S, D/heads)."""
        return self._heads(self.to_k(context)), self._heads(self.to_v(context))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend from x (N, Q, D) to ready keys and values -> (N, Q, D); scores take bias (N, 1, 1, S)."""
        out = scaled_attention(self._heads(self.to_q(x)), keys, values, bias, self.dispatch)
        return self.to_out[1](self.to_out[0](out.transpose(1, 2).flatten(2)))

    def forward(self, x: Tensor) -> Tensor:
        """Self-attention over the S tokens of x: (N, S, D) -> (N, S, D)."""
        return self.attend(x, *self.keys_values(x))


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Text mask -> additive bias (B, 1, 1, L): 0 where a token counts, -10000 where it is padding.

    Takes a mask (B, L) of 1 = keep, 0 = padding, or a ready bias (B, 1, L), as the published pipelines do.
    """
    if mask.ndim == 2:
        return ((1 - mask.to(dtype)) * MASKED_BIAS)[:, None, None, :]
    return mask.to(dtype)[:, None]


class GELU(nn.Module):
    """Linear, then GELU (`tanh` approximation on request)."""

    def __init__(self, width: int, inner_width: int, approximate: str) -> None:
        super().__init__()
        self.proj = Linear(width, inner_width)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.proj(x)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return F.gelu(hidden, approximate=self.approximate)
        return torch.ops.aten.gelu_(hidden, approximate=self.approximate)


class GEGLU(nn.Module):
    """Linear to twice the width; one half, through GELU, gates the other (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.proj = Linear(width, 2 * inner_width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gate = F.gelu(gate)
        return value * gate if torch.is_grad_enabled() else gate.mul_(value)


class FeedForward(nn.Module):
    """Position-wise MLP, four times as wide inside: (..., D) -> (..., D)."""

    def __init__(self, width: int, activation: str, dropout: float = 0.0) -> None:
        super().__init__()
        inner = 4 * width
        approximate = "tanh" if activation == "gelu-approximate" else "none"
        first = GEGLU(width, inner) if activation == "geglu" else GELU(width, inner, approximate)
        self.net = nn.ModuleList([first, nn.Dropout(dropout), Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x
