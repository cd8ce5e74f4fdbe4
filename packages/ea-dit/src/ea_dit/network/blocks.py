"""One block of the network: attention within a frame, motion module, cross-attention to the text, MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, FeedForward
from .config import TransformerConfig
from .meta import unless_meta
from .motion import MotionModule
from .text_groups import TextGroups


def modulated(norm: nn.LayerNorm, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) of x (B, S, D), scaled by 1 + scale and shifted by (B or 1, 1, D) each."""
    is_shared = shift.shape[0] == 1 and norm.weight is None
    if is_shared and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # Sampling: a scale and shift of all rows are the norm's own, in one pass.
        return F.layer_norm(x, norm.normalized_shape, (1 + scale).flatten(), shift.flatten(), norm.eps)
    return torch.addcmul(shift, norm(x), 1 + scale)


class TransformerBlock(nn.Module):
    """(B, T * L, D) -> (B, T * L, D). Parameter names are the published ones."""

    def __init__(self, config: TransformerConfig, index: int = 0) -> None:
        """index: place of the block in the network."""
        super().__init__()
        width, heads, dropout = config.width, config.num_attention_heads, config.dropout
        affine, eps = config.norm_elementwise_affine, config.norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps, elementwise_affine=affine)
        self.attn1 = Attention(width, heads, bias=config.attention_bias, dropout=dropout)
        self.attn_temporal = MotionModule(config, config.motion_of(index))
        context = config.cross_attention_dim
        self.attn2 = Attention(
            width, heads, context_width=context, bias=config.attention_bias, dropout=dropout
        )
        self.norm2 = nn.LayerNorm(width, eps=eps, elementwise_affine=affine)
        self.ff = FeedForward(width, config.activation_fn, dropout)
        self.scale_shift_table = nn.Parameter(
            unless_meta(lambda: torch.randn(6, width) / width**0.5, 6, width)
        )
        self.use_motion = True

    def forward(
        self,
        hidden_states: Tensor,
        modulation: Tensor,
        text: Tensor | tuple[Tensor, Tensor] | TextGroups,
        text_bias: Tensor | None,
        num_frames: int,
        height: int,
        width: int,
        skip: tuple[nn.Module, Tensor] | None = None,
        copies: int = 1,
    ) -> Tensor:
        """One step of the residual stream.

        Args:
            hidden_states: tokens (B, T * L, D), frame after frame, each frame row by row; L = height * width.
            modulation: (B, 6, D) or (1, 6, D) from adaLN-single.
            text: tokens (B, text tokens, context width), or their `attn2.keys_values`, or groups of
                rows (text_groups.py). Groups of r x B rows stand for r branches of the same x: everything before
                the text is computed once for all, and r x B rows come out.
            text_bias: (B, 1, 1, text tokens) or None if every token counts.
            skip: a linear and what it adds to the tokens first, for caches that leave a block out with its skip.
            copies: the rows of `hidden_states` are this many times the same.
        """
        x = hidden_states if copies == 1 else hidden_states[: len(hidden_states) // copies]
        if skip is not None:
            x = x + skip[0](skip[1])
        table = self.scale_shift_table + modulation  # (B, 6, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = table.chunk(6, dim=1)  # (B, 1, D)

        frames = modulated(self.norm1, x, shift1, scale1)
        frames = frames.unflatten(1, (num_frames, -1)).flatten(0, 1)  # (B * T, L, D)
        x = torch.addcmul(x, gate1, self.attn1(frames).view_as(x))
        if self.use_motion:
            x = self.attn_temporal(x, num_frames, height, width)
        if isinstance(text, TextGroups):
            x = text.add_to(x, self.attn2)
            return torch.addcmul(x, gate2, self.ff(modulated(self.norm2, x, shift2, scale2)))
        # Within the block, so that a block whose weights are sharded, or whose activations are computed again,
        # needs nothing from outside.
        keys, values = self.attn2.keys_values(text) if isinstance(text, Tensor) else text
        x = x + self.attn2.attend(x, keys, values, text_bias)  # PixArt: no norm before cross-attention
        return torch.addcmul(x, gate2, self.ff(modulated(self.norm2, x, shift2, scale2)))

    def modulated(self, x: Tensor, modulation: Tensor) -> Tensor:
        """The first attention's input: x (B, S, D) normalised, and modulated by the timestep."""
        shift, scale = (self.scale_shift_table + modulation).chunk(6, dim=1)[:2]
        return modulated(self.norm1, x, shift, scale)
