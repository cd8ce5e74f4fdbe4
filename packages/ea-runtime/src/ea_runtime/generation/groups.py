"""Several videos, denoised in groups of `batch_size`, from the start or from a saved place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ea_runtime.generation.denoise import NoisePredictor, Text, denoise, size_conditions
from ea_runtime.generation.inputs import strength_of
from ea_runtime.generation.known_frames import KnownFrames, first_step, noised
from ea_runtime.generation.latents import draw_noise
from ea_runtime.generation.place import Place, capture, place_of, put_back
from ea_runtime.generation.requests import Request
from ea_runtime.generation.step_cache import StepCaching
from ea_runtime.machine.formats import PartFormats
from ea_runtime.models.geometry import Geometry

if TYPE_CHECKING:
    from ea_runtime.generation.run_state import RunState


class Parts(Protocol):
    """The parts of a pipeline that denoising needs."""

    denoiser: Any
    geometry: Geometry
    has_cuda_graphs: bool

    @property
    def device(self) -> torch.device:
        """The denoiser's."""
        ...

    def new_scheduler(self, request: Request) -> Any:
        """A scheduler that nothing has used yet."""
        ...


@dataclass(frozen=True, slots=True)
class Denoising:
    """One request on a pipeline, with its texts, a generator for each video, what watches it, and known frames."""

    pipe: Parts
    request: Request
    text: Text
    generators: list[torch.Generator]
    caching: StepCaching | None
    formats: PartFormats
    step: Callable[[str, int, int], None]
    preview: Callable[[int, Tensor], None] | None
    run: RunState | None
    known: KnownFrames | None = None

    def run_all(self, scheduler: Any, saved: dict[str, Any] | None) -> tuple[Tensor, int]:
        """Latents (B, C, t, h, w) on the CPU, and the number of network passes.

        scheduler: of the first group, unused. saved: a place to resume from.
        """
        batch, group = len(self.generators), self.request.batch_size
        starts = range(0, batch, group)
        count = len(scheduler.timesteps) - first_step(scheduler, strength_of(self.request))
        total = count * len(starts)
        finished = [] if saved is None else place_of(saved).finished
        for start in starts[len(finished) :]:
            scheduler = self.pipe.new_scheduler(self.request) if start else scheduler
            x = self._group(range(start, min(start + group, batch)), scheduler, finished, total, saved)
            finished = [*finished, x.cpu()]  # a new list: a place that is yet to be saved has the old one
            saved = None
        return torch.cat(finished), total

    def _group(
        self,
        rows: range,
        scheduler: Any,
        finished: list[Tensor],
        total: int,
        saved: dict[str, Any] | None,
    ) -> Tensor:
        """Latents (N, C, t, h, w) of the videos `rows`, which are denoised together."""
        predict = self._predictor(rows, scheduler)
        first = first_step(scheduler, strength_of(self.request))
        resumed = None
        # drawn by a resumed run too: known frames are put back with it
        noise = self._noise(rows).to(self.pipe.device, torch.float32)
        if saved is not None:
            put_back(saved, scheduler, self.generators, predict, self.caching)
            resumed = place_of(saved).passes, place_of(saved).x
        start = None
        if predict.known is not None and first:
            start = noised(scheduler, predict.known.latents, noise, first)
        before = len(finished) * (len(scheduler.timesteps) - first)

        def state(passes: int, x: Tensor) -> dict[str, Any]:
            here = Place(rows.start, passes, x, finished)
            return capture(here, scheduler, self.generators, predict, self.caching)

        def on_step(passes: int, x: Tensor) -> None:
            done = before + passes
            # the last place of all is that of the finished latents
            if self.run is not None and done < total:
                self.run.offer("denoising", done, total, lambda: state(passes, x))
            self.step("denoising", done, total)

        self.step("denoising", before + (0 if resumed is None else resumed[0]), total)
        own = self.generators[rows.start : rows.stop]
        on_clean = self._on_clean(before)
        return denoise(
            predict,
            scheduler,
            noise,
            own,
            on_step,
            resumed=resumed,
            on_clean=on_clean,
            start=start,
            first=first,
        )

    def _predictor(self, rows: range, scheduler: Any) -> NoisePredictor:
        denoiser, request = self.pipe.denoiser, self.request
        embeds, mask = self.text.rows(rows.start, rows.stop)
        config = getattr(denoiser, "config", None)
        return NoisePredictor(
            denoiser,
            (embeds, mask),
            size_conditions(config, embeds.shape[0], request.height, request.width, embeds),
            request.guidance_scale,
            self._shape[1],
            [float(timestep) for timestep in scheduler.timesteps],
            self.caching,
            has_cuda_graphs=self.pipe.has_cuda_graphs,
            formats=self.formats,
            known=None if self.known is None else self.known.rows(rows.start, rows.stop).to(self.pipe.device),
        )

    def _noise(self, rows: range) -> Tensor:
        if self.request.latents is not None:
            return self.request.latents[rows.start : rows.stop]
        return draw_noise((len(rows), *self._shape[1:]), self.generators[rows.start : rows.stop])

    @property
    def _shape(self) -> tuple[int, ...]:
        request = self.request
        return self.pipe.geometry.latent_shape(
            len(self.generators), request.num_frames, request.height, request.width
        )

    def _on_clean(self, before: int) -> Callable[[int, Tensor], None] | None:
        preview = self.preview
        if preview is None:
            return None
        return lambda passes, clean: preview(before + passes, clean[0])
