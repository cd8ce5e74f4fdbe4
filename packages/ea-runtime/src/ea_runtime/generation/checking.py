"""A call of a pipeline, checked and completed before any work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.generation.inputs import check_known_frames
from ea_runtime.generation.latents import copy_generators, make_generators
from ea_runtime.generation.prompts import check_text
from ea_runtime.generation.requests import Request, check_seeds, random_seed
from ea_runtime.generation.step_cache import require_support
from ea_runtime.generation.windows import Windows
from ea_runtime.models.geometry import Geometry, check_int
from ea_runtime.models.layout import GenerationDefaults


class Pipe(Protocol):
    """The parts of a pipeline that a call is checked against."""

    denoiser: Any
    text: Any
    engine: Any
    geometry: Geometry
    defaults: GenerationDefaults
    max_pixels: int
    has_cuda_graphs: bool


def check_call(pipe: Pipe, request: Request) -> tuple[Request, list[torch.Generator], Windows]:
    """The request with nothing left out that a repetition needs, a generator for each video, and its windows.

    Raises UserError.
    """
    geometry = pipe.geometry
    if request.output not in ("frames", "latents"):
        raise UserError(f"`output` must be 'frames' or 'latents', got {request.output!r}")
    request = request.with_first_prompt()
    own = Request.of_model(pipe.defaults, negative_prompt="")
    request = request.over(_of_latents(request, geometry), own)
    batch = check_text(request, pipe.text)
    check_known_frames(request)
    request = request.checked(geometry, batch, pipe.max_pixels, pipe.defaults)
    windows = request.windows(geometry)
    if pipe.engine is not None:
        _check_engine(pipe.engine, windows, request)
    latents = request.latents
    expected = geometry.latent_shape(batch, request.num_frames, request.height, request.width)
    if latents is not None and tuple(latents.shape) != expected:
        raise UserError(f"`latents` must have shape {expected} for this request, got {tuple(latents.shape)}")
    if request.step_cache is not None:
        require_support(pipe.denoiser)
        if pipe.has_cuda_graphs:
            raise UserError("`step_cache` keeps what CUDA graphs overwrite; use one of the two")
    seed, generator = request.seed, request.generator
    if seed is not None and generator is not None:
        raise UserError("give either `seed` or `generator`, not both")
    if seed is None and generator is None:
        seed = random_seed()
    generators = make_generators(None if seed is None else check_seeds(seed, batch), generator, batch)
    request = replace(
        request,
        batch_size=check_int("batch_size", request.batch_size, 1),
        negative_prompt=None if request.negative_prompt_embeds is not None else request.negative_prompt,
        seed=seed,
        generator=None if generator is None else copy_generators(generator),
    )
    return request, generators, windows


def _of_latents(request: Request, geometry: Geometry) -> Request:
    """The number of frames and the size that the given latents stand for."""
    latents = request.latents
    if latents is None:
        return Request()
    if not isinstance(latents, Tensor) or latents.ndim != 5:
        raise UserError("`latents` must be a tensor (B, C, t, h, w) of unit noise")
    return Request(
        num_frames=request.num_frames or geometry.num_frames(latents.shape[2]),
        height=latents.shape[3] * geometry.spatial_ratio,
        width=latents.shape[4] * geometry.spatial_ratio,
    )


def _check_engine(engine: Any, windows: Windows, request: Request) -> None:
    """Raises UserError if an engine cannot make one of the windows."""
    for count in dict.fromkeys(one.num_frames for one in windows.all):
        try:
            engine.check(count, request.height, request.width)
        except UserError as error:
            if len(windows) == 1:
                raise
            numbers = ", ".join(dict.fromkeys(str(one.num_frames) for one in windows.all))
            why = (
                "loops of short videos have a longer window"
                if windows.is_loop
                else "give its length as `window`"
            )
            raise UserError(
                f"the windows of this video have {numbers} frames, and an engine of a fixed size makes all "
                f"of one length ({why}): {error}"
            ) from error
