"""One denoiser over several processes: each holds all weights and some of the frames.

Attention within a frame, cross-attention and MLP need whole frames and nothing else; attention through time needs whole
tracks, a position (of a grid motion module: a block of positions) in all frames. So a motion module changes the split
from frames to tracks by one all-to-all, and back by another. A global attention (V3) also gathers all tokens, for its
keys and values. Every process gets the whole prediction, draws the same
noise and takes the same steps.

Shapes: B videos, T latent frames of which t are here, P tracks of which p are here, K numbers in a track's frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def shares(count: int, size: int) -> list[int]:
    """`count` things over `size` processes, as evenly as possible, the first ones taking one more."""
    return [count // size + (rank < count % size) for rank in range(size)]


@dataclass(frozen=True)
class FrameSplit:
    """The split of T frames and P tracks over the processes of `group` (None: all)."""

    group: Any = None

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    def fits(self, num_frames: int, num_tracks: int) -> bool:
        """True if each process gets a frame and a track; otherwise each computes everything."""
        return self.size > 1 and min(num_frames, num_tracks) >= self.size

    def of(self, num_frames: int, num_tracks: int) -> VideoSplit:
        """The split of a video of `num_frames` latent frames and `num_tracks` tracks."""
        return VideoSplit(self.group, num_frames, num_tracks)


@dataclass(frozen=True)
class VideoSplit(FrameSplit):
    """A video of `num_frames` latent frames and `num_tracks` tracks over the processes."""

    num_frames: int = 1
    num_tracks: int = 1

    def own(self, tokens: Tensor) -> Tensor:
        """(B, T * L, D) -> this process's frames (B, t * L, D)."""
        parts = tokens.unflatten(1, (self.num_frames, -1)).split(shares(self.num_frames, self.size), dim=1)
        return parts[self.rank].flatten(1, 2)

    def whole(self, tokens: Tensor) -> Tensor:
        """Every process's (B, t * L, D), put together: (B, T * L, D)."""
        return self._gathered(tokens, self.num_frames)

    def all_tracks(self, tokens: Tensor) -> Tensor:
        """Every process's tracks (B, p * n, D) of n tokens, put together: (B, P * n, D)."""
        return self._gathered(tokens, self.num_tracks)

    def to_tracks(self, x: Tensor) -> Tensor:
        """(B, P, t, K) -> (B, p, T, K)."""
        batch, tracks, _, depth = x.shape
        frames, places = shares(self.num_frames, self.size), shares(tracks, self.size)
        parts = x.split(places, dim=1)
        sizes = [(batch, places[self.rank], n, depth) for n in frames]
        return torch.cat(self._exchange(parts, sizes), dim=2)

    def to_frames(self, x: Tensor, num_tracks: int) -> Tensor:
        """(B, p, T, K) -> (B, P, t, K)."""
        batch, _, _, depth = x.shape
        frames, places = shares(self.num_frames, self.size), shares(num_tracks, self.size)
        parts = x.split(frames, dim=2)
        sizes = [(batch, n, frames[self.rank], depth) for n in places]
        return torch.cat(self._exchange(parts, sizes), dim=1)

    def _gathered(self, tokens: Tensor, count: int) -> Tensor:
        """The processes' shares of `count` frames or tracks, each (B, share * n, D), in order."""
        counts = shares(count, self.size)
        own = tokens.unflatten(1, (counts[self.rank], -1))
        padded = own.new_zeros(own.shape[0], max(counts), *own.shape[2:])
        padded[:, : own.shape[1]] = own
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:, :n] for part, n in zip(parts, counts, strict=True)], 1).flatten(1, 2)

    def _exchange(self, parts: Sequence[Tensor], sizes: list[tuple[int, ...]]) -> list[Tensor]:
        """One all-to-all: parts[i] goes to process i, which sends what has sizes[i]."""
        counts = [torch.Size(size).numel() for size in sizes]
        received = parts[0].new_empty(sum(counts))
        sent = torch.cat([part.flatten() for part in parts])
        dist.all_to_all_single(received, sent, counts, [part.numel() for part in parts], group=self.group)
        return [part.view(size) for part, size in zip(received.split(counts), sizes, strict=True)]
