"""Estimates of the memory of a model's activations by number format, from its configs alone. Imports no torch.

They count the widest moment of one denoising step and of one decoded chunk; weights, libraries and the system come on
top (ea_runtime.planning adds those).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ea_runtime.models.geometry import Geometry
from ea_runtime.models.memory.denoiser import DenoiserShape, StepInput, walk_step
from ea_runtime.models.memory.meter import Meter
from ea_runtime.models.memory.vae import walk_decode

#: bytes an element
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


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
    geometry = Geometry.from_configs(vae, denoiser)
    _, _, frames, rows, columns = geometry.latent_shape(1, num_frames, height, width)
    patch = DenoiserShape.of(denoiser).patch
    sizes = {}
    for name, itemsize in BYTES.items():
        meter = Meter(itemsize)
        walk_step(meter, denoiser, StepInput(1, batch, frames, rows, columns))
        sizes[name] = meter.peak
    return StepEstimate(height, width, num_frames, sizes, frames * (rows // patch) * (columns // patch))


def estimate_decode(vae: Mapping[str, Any], *, height: int, width: int) -> Estimate:
    """Activations of decoding one chunk at `height` x `width` pixels; the whole video's length does not matter."""
    geometry = Geometry.from_configs(vae)
    before = after = geometry.chunk_latents if geometry.is_slice else 0
    rows, columns = height // geometry.spatial_ratio, width // geometry.spatial_ratio
    sizes = {}
    for name, itemsize in BYTES.items():
        meter = Meter(itemsize)
        walk_decode(meter, vae, geometry.chunk_latents, rows, columns, before=before, after=after)
        sizes[name] = meter.peak
    return Estimate(height, width, geometry.chunk_frames, sizes)
