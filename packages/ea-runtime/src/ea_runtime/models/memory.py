"""Estimates of the memory of a model's activations, from its configs alone. Imports no torch.

They count the widest moment of one denoising step and of one decoded chunk: upper bounds for a plain eager run,
each calibrated on one measured figure; allocators, libraries and the system come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ea_runtime.models.geometry import Geometry

#: bytes an element
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}

#: Widths of D that are alive at once for a token besides the skips: the GEGLU of a motion module holds both
#: halves of its projection (8), their product (4), its input and the residual (2).
_LIVE_WIDTHS = 14
#: Tensors of the largest size in the decoder that are alive at once: 10.15 GB were measured in a build log
#: for the published decoder at 768 in fp16, 3.74 times 9 frames x 768 x 768 x 256 channels x 2 bytes.
_LIVE_DECODER = 3.75


@dataclass(frozen=True, slots=True)
class Estimate:
    """Activations of one decoded chunk of `num_frames` frames, or of a denoising step of all frames."""

    height: int
    width: int
    num_frames: int
    bytes_by_dtype: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StepEstimate(Estimate):
    """Activations of one step. `tokens`: tokens of a frame x latent frames, for one video."""

    tokens: int


def native_size(denoiser: Mapping[str, Any], spatial_ratio: int = 8) -> int:
    """The side in pixels that a denoiser was made for: its `sample_size` is in latents."""
    return int(denoiser.get("sample_size") or 64) * spatial_ratio


def estimate_denoise(
    denoiser: Mapping[str, Any],
    vae: Mapping[str, Any],
    *,
    height: int,
    width: int,
    num_frames: int,
    batch: int = 2,
) -> StepEstimate:
    """Activations of a denoising step at `height` x `width` pixels (batch 2: with guidance)."""
    patch = int(denoiser.get("patch_size") or 2)
    dim = int(denoiser.get("num_attention_heads") or 16) * int(denoiser.get("attention_head_dim") or 72)
    skips = (int(denoiser.get("num_layers") or 28) - 1) // 2 if denoiser.get("enable_uvit", True) else 0
    _, _, frames, rows, columns = Geometry.from_configs(vae, denoiser).latent_shape(
        1, num_frames, height, width
    )
    tokens = frames * (rows // patch) * (columns // patch)
    sizes = _by_dtype(batch * tokens * dim * (_LIVE_WIDTHS + skips))
    return StepEstimate(height, width, num_frames, sizes, tokens)


def estimate_decode(vae: Mapping[str, Any], *, height: int, width: int) -> Estimate:
    """Activations of decoding one chunk at `height` x `width` pixels; the whole video's length does not matter."""
    widths = vae_widths(vae)
    # the up-sampled tensor at full size still has the width of the block before the last
    channels = widths[min(1, len(widths) - 1)]
    frames = int(vae.get("mini_batch_encoder") or 9)
    return Estimate(height, width, frames, _by_dtype(int(_LIVE_DECODER * frames * height * width * channels)))


def _by_dtype(elements: int) -> dict[str, int]:
    return {name: elements * size for name, size in BYTES.items()}


def vae_widths(vae: Mapping[str, Any]) -> list[int]:
    """Widths of the VAE's blocks, from the pixels' side, in either spelling of the config."""
    widths = vae.get("block_out_channels")
    if isinstance(widths, list) and widths and vae.get("ch") is None:
        return [int(value) for value in widths]
    base = int(vae.get("ch") or 128)
    return [base * int(value) for value in vae.get("ch_mult") or (1, 2, 4, 4)]
