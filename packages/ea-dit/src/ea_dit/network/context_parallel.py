"""diffusers' context parallel for this network (`enable_parallelism`): each process holds all weights and some frames.

The tokens of a video are in order of frames, so an even split of them along the sequence is a split by frames.
Attention within a frame, cross-attention and MLPs need nothing else. In attention through time, and in V3's over all
tokens, the sequence is what was split, and diffusers' Ulysses exchanges it for heads: every process gets all frames of
some heads. That takes four all-to-alls for each attention; our own split (parallel.py) takes two for a whole motion
module, and any number of frames and processes: prefer `spread`.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

#: split behind the patches and their places, put together behind the last block
CP_PLAN: dict[str, Any] = {
    "pos_embed": {0: ContextParallelInput(split_dim=1, expected_dims=3, split_output=True)},
    "all_frames": ContextParallelOutput(gather_dim=1, expected_dims=3),
}


def check_config(config: Any, num_heads: int) -> None:
    """Raises ValueError, in one line, for a split that this network cannot compute.

    config: diffusers' ParallelConfig or ContextParallelConfig. num_heads: of attention through time.
    """
    context = getattr(config, "context_parallel_config", config)
    if context is None or not hasattr(context, "ulysses_degree"):
        raise ValueError(
            "`config` must be a ContextParallelConfig; tensor parallel has no plan for this network"
        )
    if context.ring_degree > 1 or context.ulysses_anything:
        raise ValueError(
            "`config` must have `ulysses_degree` alone: frames are shared out evenly, and heads exchanged; "
            "`spread()` takes any number of frames"
        )
    if num_heads % context.ulysses_degree:
        raise ValueError(
            f"`ulysses_degree` must divide the {num_heads} heads of attention through time, "
            f"got {context.ulysses_degree}"
        )


def local_frames(config: Any, num_frames: int, has_step_cache: bool) -> int:
    """The latent frames of this process, of a pass over `num_frames`. Raises ValueError, in one line."""
    size = config.context_parallel_config.ulysses_degree
    if num_frames % size:
        raise ValueError(
            f"context parallel shares latent frames out evenly: {num_frames} do not fit {size} processes; "
            "`spread()` takes any number"
        )
    if has_step_cache:
        raise ValueError(
            "a step cache sees some frames only under context parallel; leave it out, or use `spread()`"
        )
    return num_frames // size


def first_frame(config: Any, num_frames: int) -> int:
    """The place in time of the first of this process's `num_frames`."""
    return dist.get_rank(config.context_parallel_config._flattened_mesh.get_group()) * num_frames
