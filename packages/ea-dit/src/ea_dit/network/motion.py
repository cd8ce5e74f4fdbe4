"""Motion modules: the only place where frames see each other.

Shapes: tokens of b videos lie as (b, t * h * w, d). A temporal attention works on sequences through time, so
the module moves to ((b h w), t, d) once, runs all its layers there, and moves back once. With "VanillaGrid" a
sequence holds t x n x n tokens, those of an n x n block of neighbours in every frame; "Vanilla" is n = 1. A global
attention (V3, every second block) takes all sequences of a video as one. After AnimateDiff (arXiv 2307.04725).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from .attention import Attention, FeedForward
from .config import GLOBAL, MOTION_NORM_GROUPS, MotionConfig, TransformerConfig
from .context_parallel import first_frame
from .linear import Linear
from .meta import unless_meta
from .parallel import VideoSplit


class TemporalPosition(nn.Module):
    """Sinusoidal position in time: a table `pe` (1, max_len, D), sines in even, cosines in odd channels.

    A persistent buffer, since published checkpoints hold it.
    """

    pe: Tensor

    def __init__(self, width: int, max_len: int) -> None:
        super().__init__()

        def table() -> Tensor:
            frames = torch.arange(max_len)[:, None]
            frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
            angles = frames * frequencies  # (max_len, D/2)
            return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]

        self.register_buffer("pe", unless_meta(table, 1, max_len, width))

    def forward(self, x: Tensor, num_frames: int, first: int = 0) -> Tensor:
        """(N, T * n * n, D) -> the same, each token with its frame's position added; overwrites x without gradients.

        first: the position of the first frame.
        """
        positions = self.pe[:, first : first + num_frames]
        repeats = x.shape[1] // num_frames  # n * n tokens of a frame share its position
        positions = positions if repeats == 1 else positions.repeat_interleave(repeats, dim=1)
        return x + positions if torch.is_grad_enabled() else x.add_(positions)


class TemporalAttention(Attention):
    """Self-attention through time, positions added before the projections."""

    is_global = False

    def __init__(self, width: int, motion: MotionConfig) -> None:
        super().__init__(width, motion.num_attention_heads, bias=False)
        self.pos_encoder = (
            TemporalPosition(width, motion.temporal_position_encoding_max_len)
            if motion.temporal_position_encoding
            else None
        )

    def forward(
        self, x: Tensor, num_frames: int = 1, batch: int = 1, split: VideoSplit | None = None
    ) -> Tensor:
        """(N, T * n * n, D) -> (N, T * n * n, D); N sequences of `batch` videos, with `split` only some of them."""
        parallel = None if self.dispatch is None else self.dispatch.parallel
        if self.pos_encoder is not None:
            x = self.pos_encoder(x, num_frames, 0 if parallel is None else first_frame(parallel, num_frames))
        if self.is_global:
            return self._over_video(x, batch, split)
        if x.shape[1] == 1 and parallel is None and not torch.is_grad_enabled():
            # A picture: attention over one token returns its value. (In training queries and keys keep their
            # zero gradients, which data-parallel wrappers wait for.)
            return self.to_out[1](self.to_out[0](self.to_v(x)))
        return self.attend(x, *self.keys_values(x))

    def _over_video(self, x: Tensor, batch: int, split: VideoSplit | None) -> Tensor:
        """Attention over all tokens of a video; tokens have their places from the network's input and from time."""
        tokens = x.reshape(batch, -1, x.shape[-1])  # (B, all tokens, D), track after track
        everything = tokens if split is None else split.all_tracks(tokens)
        return self.attend(tokens, *self.keys_values(everything)).view_as(x)


class GlobalAttention(TemporalAttention):
    """Self-attention over all tokens of a video (EasyAnimate V3): its cost grows with the square of their number."""

    is_global = True


class TemporalBlock(nn.Module):
    """Pre-norm transformer block through time: one or more attentions, then a gated MLP."""

    def __init__(self, width: int, motion: MotionConfig) -> None:
        super().__init__()
        kinds = motion.attention_block_types
        self.attention_blocks = nn.ModuleList(
            [(GlobalAttention if kind == GLOBAL else TemporalAttention)(width, motion) for kind in kinds]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in kinds])
        self.ff = FeedForward(width, "geglu")
        self.ff_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, num_frames: int, batch: int, split: VideoSplit | None) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x), num_frames, batch, split)
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    """Group norm per frame, projection in, temporal blocks, projection out (zero at first), residual."""

    def __init__(self, config: TransformerConfig, motion: MotionConfig) -> None:
        super().__init__()
        inner = config.width // motion.temporal_attention_dim_div
        self.block_size = config.motion_block_size
        self.split: VideoSplit | None = None  # while a pass runs over several processes
        self.norm = nn.GroupNorm(MOTION_NORM_GROUPS, config.width, eps=1e-6)
        self.proj_in = Linear(config.width, inner)
        self.transformer_blocks = nn.ModuleList(
            [TemporalBlock(inner, motion) for _ in range(motion.num_transformer_block)]
        )
        self.proj_out = Linear(inner, config.width)
        if motion.zero_initialize:
            nn.init.zeros_(self.proj_out.weight)
            nn.init.zeros_(self.proj_out.bias)

    def forward(self, tokens: Tensor, num_frames: int, height: int, width: int) -> Tensor:
        """(B, T * H * W, D) -> (B, T * H * W, D); H and W count tokens."""
        grid = {
            "t": num_frames,
            "h": height // self.block_size,
            "w": width // self.block_size,
            "n": self.block_size,
        }
        # Statistics per frame, over space and a group's channels. As an image in channels-last memory, which
        # the tokens already are, so that nothing is copied on the CPU.
        images = rearrange(tokens, "b (t h w) d -> (b t) d h w", t=num_frames, h=height, w=width)
        if torch.is_grad_enabled() and self.norm.weight.requires_grad and not images.requires_grad:
            # All before the first motion module is frozen. torch (2.13, CPU) then crashes in the norm's backward pass
            # over channels-last memory, which does not expect that only weight and bias want gradients.
            images = images.detach().requires_grad_()
        x = self.norm(images)
        x = rearrange(x, "(b t) d (h n) (w m) -> (b h w) (t n m) d", m=self.block_size, **grid)
        split, tracks = self.split, grid["h"] * grid["w"]
        if split is None:
            x = self._through_time(x, num_frames, len(tokens))
        else:  # only some of the frames are here
            total, shape = split.num_frames, x.shape
            x = split.to_tracks(x.view(-1, tracks, num_frames, shape[1] // num_frames * shape[2]))
            rows = x.view(-1, shape[1] // num_frames * total, shape[2])  # ((b p), (T n m), d)
            x = split.to_frames(self._through_time(rows, total, len(tokens)).view(x.shape), tracks).view(
                shape
            )
        # Moving back and adding is one pass: the sum takes the layout of its first operand.
        n, shape = self.block_size, (num_frames, height // self.block_size, width // self.block_size)
        x = x.unflatten(1, (num_frames, n, n)).unflatten(0, (-1, *shape[1:]))  # (b, h, w, t, n, m, d)
        stream = tokens.unflatten(1, (num_frames, shape[1], n, shape[2], n))  # (b, t, h, n, w, m, d)
        return (stream + x.permute(0, 3, 1, 4, 2, 5, 6)).flatten(1, 5)

    def _through_time(self, x: Tensor, num_frames: int, batch: int) -> Tensor:
        """(N, T * n * n, D) -> (N, T * n * n, D), the sequences of `batch` videos."""
        x = self.proj_in(x)
        for block in self.transformer_blocks:
            x = block(x, num_frames, batch, self.split)
        return self.proj_out(x)


class MotionModule(nn.Module):
    """Holder of the published name `temporal_transformer`."""

    def __init__(self, config: TransformerConfig, motion: MotionConfig) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(config, motion)

    def forward(self, tokens: Tensor, num_frames: int, height: int, width: int) -> Tensor:
        return self.temporal_transformer(tokens, num_frames, height, width)
