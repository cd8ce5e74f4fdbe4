"""From noise to latents: the sampling loop with classifier-free guidance.

Shape legend: N videos denoised together, R = 2N rows with guidance (without text first, then with it) or N
without, C latent channels, t latent frames, h w latent size, L text tokens, D text width.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ea_runtime.errors import NotFiniteError, UserError
from ea_runtime.generation.known_frames import KnownFrames
from ea_runtime.generation.preview import predicted_clean
from ea_runtime.generation.step_cache import StepCaching
from ea_runtime.machine.formats import PartFormats
from ea_runtime.machine.memory import free_memory, is_out_of_memory
from ea_runtime.records import Record

logger = logging.getLogger("ea")

#: text tokens that V3 makes of CLIP's embedding of a picture
CLIP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Text:
    """The texts of N videos: embeddings (N, L, D) and mask (N, L), 1 on text; negative ones or None."""

    embeds: Tensor
    mask: Tensor
    negative_embeds: Tensor | None = None
    negative_mask: Tensor | None = None

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Embeddings (R, L, D) and mask (R, L) of videos start..stop, the negative ones first as in V2."""
        embeds, mask = self.embeds[start:stop], self.mask[start:stop]
        if self.negative_embeds is None or self.negative_mask is None:
            return embeds, mask
        embeds = torch.cat([self.negative_embeds[start:stop], embeds])
        return embeds, torch.cat([self.negative_mask[start:stop].to(mask.dtype), mask])


def plan_steps(record: Record, config: dict[str, Any], num_steps: int) -> Any:
    """The sampler's scheduler, ready for `num_steps` steps. Raises UserError if it cannot do that many."""

    def prepared(count: int) -> Any:
        try:
            scheduler = record.build(**config)
            scheduler.set_timesteps(count)
        except (ValueError, IndexError, ZeroDivisionError):
            return None
        last = getattr(scheduler.config, "num_train_timesteps", 1000) - 1
        # PNDM and DDIM count from an offset and at 1,000 steps would start beyond the last trained one
        return scheduler if float(scheduler.timesteps.max()) <= last else None

    scheduler = prepared(num_steps)
    if scheduler is not None:
        return scheduler
    near = sorted(range(max(1, num_steps - 20), num_steps + 21), key=lambda count: abs(count - num_steps))
    use = next((count for count in near if prepared(count) is not None), None)
    hint = f"; use {use}" if use else ""
    raise UserError(f"`num_inference_steps` {num_steps} is not possible with sampler {record.name!r}{hint}")


class NoisePredictor:
    """The denoiser with text, guidance and size conditions fixed: noisy latents in, noise out.

    What all steps share is computed once where the denoiser offers `prepare`; its guidance branches then start from
    one copy of the latents. When memory runs out the rows are run one at a time from then on.
    """

    def __init__(
        self,
        denoiser: Any,
        text: tuple[Tensor, Tensor],
        conditions: dict[str, Any],
        guidance: float,
        channels: int,
        timesteps: Sequence[float] = (),
        step_cache: StepCaching | None = None,
        has_cuda_graphs: bool = False,
        formats: PartFormats | None = None,
        known: KnownFrames | None = None,
    ) -> None:
        self.formats = formats or PartFormats(logger.warning)
        self.denoiser = denoiser
        self.embeds, self.mask = text
        self.conditions = conditions
        self.guidance = guidance
        self.channels = channels
        self.timesteps = timesteps
        self.step_cache = step_cache
        self.has_cuda_graphs = has_cuda_graphs
        self.dtype = self.embeds.dtype
        self.has_picture = False
        self.known = known
        self.is_split = False
        #: rows, and if CLIP's picture counts -> what `prepare` gave
        self.prepared: dict[tuple[int, int, bool], Any] = {}
        self.caches: dict[tuple[int, int], Any] = {}
        if has_cache(denoiser):
            denoiser._reset_stateful_cache()

    def __call__(self, x: Tensor, timestep: Tensor, step: int = 0) -> Tensor:
        """Noisy latents (N, C, t, h, w) and the timestep of a step -> noise (N, C, t, h, w), float32."""
        rows = self.embeds.shape[0]
        self.has_picture = self.known is not None and self.known.is_clip_on(step, len(self.timesteps))
        noise = self._run(x, timestep, rows)
        if rows == x.shape[0]:
            return noise
        without, with_text = noise.chunk(2)
        return without + self.guidance * (with_text - without)

    def _run(self, x: Tensor, timestep: Tensor, rows: int) -> Tensor:
        """Noise (R, C, t, h, w): row r has the text of row r and latents r mod N."""
        if not self.is_split:
            try:
                return self._forward(x, timestep, 0, rows)
            except Exception as error:
                if rows == 1 or not is_out_of_memory(error):
                    raise
                self.is_split = True
            self.prepared.clear()
            self.caches.clear()
            free_memory()
        count = x.shape[0]
        return torch.cat([self._forward(x[i % count][None], timestep, i, i + 1) for i in range(rows)])

    def _forward(self, x: Tensor, timestep: Tensor, start: int, stop: int) -> Tensor:
        """Noise of rows start..stop, for which x has one video or all."""
        conditions = {name: None if v is None else v[start:stop] for name, v in self.conditions.items()}
        rows = (start, stop)
        arguments: dict[str, Any] = {}
        copies = (stop - start) // x.shape[0]
        picture = self._picture(start, stop)
        if hasattr(self.denoiser, "prepare"):
            key = (*rows, self.has_picture)
            if key not in self.prepared:
                with self.formats.watch(self.denoiser, "prepare", tuple(self.embeds.shape), key):
                    self.prepared[key] = self.denoiser.prepare(
                        self.embeds[start:stop], self.mask[start:stop], self.timesteps, conditions, **picture
                    )
            arguments = {"prepared": self.prepared[key], "timestep": float(timestep)}
            copies = 1
        else:
            arguments = {
                "encoder_hidden_states": self.embeds[start:stop],
                "encoder_attention_mask": self.mask[start:stop],
                "added_cond_kwargs": conditions,
                "timestep": timestep.to(x.device).reshape(1).expand(stop - start),
                **picture,
            }
        if self.known is not None and self.known.inputs is not None:
            own = self.known.inputs
            own = own if len(own) == len(x) else own[start % len(own)][None]
            arguments["inpaint_latents"] = torch.cat([own] * copies).to(self.dtype)
        x = torch.cat([x] * copies) if copies > 1 else x
        if self.step_cache is not None:
            if rows not in self.caches:
                self.caches[rows] = self.step_cache.new(len(self.timesteps))
            arguments["step_cache"] = self.caches[rows]
        if self.has_cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # what the last pass gave may be overwritten
        cached = self.denoiser.cache_context(f"{start}-{stop}") if has_cache(self.denoiser) else nullcontext()
        with cached, self.formats.watch(self.denoiser, tuple(x.shape), tuple(self.embeds.shape), rows):
            out = self.denoiser(x.to(self.dtype), **arguments).sample
        # a learned variance, the second half of the channels, is for training; the samplers have their own
        return out[:, : self.channels].float()

    def _picture(self, start: int, stop: int) -> dict[str, Tensor]:
        """CLIP's picture for rows start..stop where it counts now: never for those without the prompt."""
        if not self.has_picture or self.known is None or self.known.clip is None:
            return {}
        clip = self.known.clip.to(self.embeds)
        rows, count = self.embeds.shape[0], len(clip)
        has_text = torch.arange(start, stop, device=clip.device) >= rows - count
        every = torch.cat([clip] * (rows // count))[start:stop]
        mask = (has_text & every.any(dim=1))[:, None].expand(-1, CLIP_TOKENS).to(clip)  # zeros: no picture
        return {"clip_encoder_hidden_states": every, "clip_attention_mask": mask}


def has_cache(denoiser: Any) -> bool:
    """True if one of diffusers' caches is on (`enable_cache`), whose state belongs to one run."""
    return bool(getattr(denoiser, "is_cache_enabled", False))


def size_conditions(denoiser_config: Any, rows: int, height: int, width: int, like: Tensor) -> dict[str, Any]:
    """Size inputs of PixArt's 1024-pixel model (sample_size 128): (R, 2) and (R, 1); None for others."""
    if getattr(denoiser_config, "sample_size", None) != 128:
        return {"resolution": None, "aspect_ratio": None}
    resolution = torch.tensor([[height, width]]).to(like).expand(rows, 2)
    aspect_ratio = torch.tensor([[height / width]]).to(like).expand(rows, 1)
    return {"resolution": resolution, "aspect_ratio": aspect_ratio}


def denoise(
    predict: NoisePredictor,
    scheduler: Any,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    on_step: Callable[[int, Tensor], None],
    *,
    resumed: tuple[int, Tensor] | None = None,
    on_clean: Callable[[int, Tensor], None] | None = None,
    start: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Run the sampler.

    noise: (N, C, t, h, w), unit variance, float32 on the device. generators: one for each video, for samplers
    that draw. on_step: called after each network pass with the number of passes done and the latents. resumed: passes
    done and latents of a run whose scheduler, generators and predictor are as they were then. on_clean: called after
    each pass, before on_step, with the number of passes and the clean latents (N, C, t, h, w) that it leads to. start:
    noised latents to start from in place of the noise alone, at step `first`; the predictor's known frames are put back
    after each pass.

    Returns latents (N, C, t, h, w), float32. Raises NotFiniteError.
    """
    # Latents stay in float32 whatever the network runs in. Differs from EasyAnimate, where they are rounded
    # to bfloat16 after every step.
    before, x = (
        (0, noise * scheduler.init_noise_sigma if start is None else start) if resumed is None else resumed
    )
    known = getattr(predict, "known", None)
    accepted = inspect.signature(scheduler.step).parameters
    drawing: dict[str, Any] = {}
    if "generator" in accepted:
        drawing["generator"] = list(generators) if len(generators) > 1 else generators[0]
    count = len(scheduler.timesteps) - first
    for done, timestep in enumerate(scheduler.timesteps[first + before :], before + 1):
        seen = scheduler.scale_model_input(x, timestep)
        noise_now = predict(seen, timestep, first + done - 1)
        clean = None if on_clean is None else predicted_clean(scheduler, seen, timestep, noise_now)
        x = scheduler.step(noise_now, timestep, x, return_dict=False, **drawing)[0]
        if known is not None:
            x = known.put_back(x, noise, scheduler, first + done - 1)
        if not torch.isfinite(x).all():
            name = str(predict.dtype).removeprefix("torch.")
            hint = "a lower guidance_scale" if name == "float32" else "dtype float32"
            raise NotFiniteError(
                f"the latents became NaN or infinite at pass {done} of {count} in {name}; try {hint}"
            )
        if on_clean is not None and clean is not None:
            on_clean(done, clean)
        on_step(done, x)
    return x
