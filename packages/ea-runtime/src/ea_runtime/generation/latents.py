"""Noise that does not depend on the device, and latents turned into frames as they are decoded.

Shapes: latents (B, C, t, h, w), frames (T, H, W, 3) uint8.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ea_runtime.errors import NotFiniteError, UserError
from ea_runtime.machine.allocator import return_free_memory
from ea_runtime.machine.memory import free_memory, is_out_of_memory


def make_generators(seeds: Sequence[int] | None, generator: Any, batch: int) -> list[torch.Generator]:
    """One generator for each video: new ones from `seeds`, or those given (one serves all videos in turn)."""
    if seeds is not None:
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    given = list(generator) if isinstance(generator, list | tuple) else [generator] * batch
    if len(given) != batch or not all(isinstance(one, torch.Generator) for one in given):
        raise UserError(f"`generator` must be a torch.Generator or a list of {batch}, one for each video")
    return given


def copy_generators(generator: Any) -> Any:
    """Generators as they are now: the run uses up the given ones."""
    if isinstance(generator, torch.Generator):
        return generator.clone_state()
    return [one.clone_state() for one in generator]


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Unit noise (B, C, t, h, w) in float32 on the CPU, each video drawn from its own generator."""
    rows = [
        torch.randn(tuple(shape[1:]), generator=g, device=g.device, dtype=torch.float32).cpu()
        for g in generators
    ]
    return torch.stack(rows)


def draw_seed(generator: torch.Generator) -> int:
    """A seed for the noise of decoding, drawn after the sampler's own numbers."""
    return int(torch.randint(0, 1 << 62, (1,), generator=generator, device=generator.device).item())


def iter_frames(
    vae: Any,
    latents: Tensor,
    *,
    smooth: bool,
    seed: int,
    num_frames: int,
    start: int = 0,
    is_tiled: bool = False,
) -> Iterator[np.ndarray]:
    """Decode one video and yield its frames from `start` on as they become final, in constant memory.

    If memory runs out, decoding restarts in tiles, once, and resumes after the frames already given. is_tiled: in
    tiles at once.

    latents: (1, C, t, h, w), the VAE's own scale. Yields (H, W, 3) uint8. Raises NotFiniteError.
    """
    given = start
    was_tiled = getattr(vae, "use_tiling", False)
    try:
        try:
            if is_tiled and not was_tiled and hasattr(vae, "enable_tiling"):
                vae.enable_tiling()
            for frame in _decode(vae, latents, smooth, seed, num_frames, start):
                yield frame
                given += 1
            return
        except Exception as error:
            if was_tiled or is_tiled or not hasattr(vae, "enable_tiling") or not is_out_of_memory(error):
                raise
        free_memory()
        vae.enable_tiling()
        yield from _decode(vae, latents, smooth, seed, num_frames, given)
    finally:
        if not was_tiled and getattr(vae, "use_tiling", False) and hasattr(vae, "disable_tiling"):
            vae.disable_tiling()


def _decode(
    vae: Any, latents: Tensor, smooth: bool, seed: int, num_frames: int, start: int
) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 from `start` on; a VAE that cannot start there decodes all."""
    settings = {"generator": torch.Generator().manual_seed(seed), "num_frames": num_frames, "start": start}
    accepted = inspect.signature(vae.iter_decode).parameters
    unwanted = 0 if "start" in accepted else start
    chunks = vae.iter_decode(latents, smooth=smooth, **{k: v for k, v in settings.items() if k in accepted})
    while True:
        with torch.inference_mode():  # not around the yield: the mode must not leak to the caller
            chunk = next(chunks, None)
            if chunk is None:
                return
            frames = to_uint8(chunk)
        del chunk
        return_free_memory()
        yield from frames[unwanted:]
        unwanted = max(unwanted - len(frames), 0)


def to_uint8(frames: Tensor) -> np.ndarray:
    """Frames (1, 3, T, H, W) in -1..1 -> (T, H, W, 3) uint8, rounded.

    Differs from EasyAnimate: it cuts off the fraction, which darkens by half a step.
    """
    if not torch.isfinite(frames).all():
        name = str(frames.dtype).removeprefix("torch.")
        raise NotFiniteError(f"the decoded frames hold NaN or infinity in {name}; try dtype float32")
    scaled = (frames.float() + 1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return rearrange(scaled, "1 c t h w -> t h w c").contiguous().cpu().numpy()
