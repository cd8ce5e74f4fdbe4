"""Several videos, denoised in groups of `batch_size` and window by window, from the start or from a saved place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ea_runtime.generation.denoise import NoisePredictor, Text, denoise, size_conditions
from ea_runtime.generation.inputs import strength_of
from ea_runtime.generation.known_frames import first_step, noised
from ea_runtime.generation.latents import draw_noise
from ea_runtime.generation.place import Place, capture, place_of, put_back
from ea_runtime.generation.requests import Request
from ea_runtime.generation.step_cache import StepCaching
from ea_runtime.generation.timed_prompts import texts_in_force
from ea_runtime.generation.window_inputs import WindowInputs
from ea_runtime.generation.windows import Window
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
    """One request on a pipeline, with a generator for each video, what watches it, and known frames.

    texts: the prompts, then those that take their place later (`prompts_at`).
    """

    pipe: Parts
    request: Request
    texts: Sequence[Text]
    generators: list[torch.Generator]
    caching: StepCaching | None
    formats: PartFormats
    step: Callable[[str, int, int], None]
    preview: Callable[[int, Tensor], None] | None
    run: RunState | None
    inputs: WindowInputs

    def run_all(self, scheduler: Any, saved: dict[str, Any] | None) -> tuple[Tensor, int]:
        """Latents (B, C, t, h, w) on the CPU, and the number of network passes.

        scheduler: of the first window, unused. saved: a place to resume from. Windows that are joined as pixels keep
        all their latents, one window after the other.
        """
        batch, group = len(self.generators), self.request.batch_size
        starts = range(0, batch, group)
        count = len(scheduler.timesteps) - first_step(scheduler, strength_of(self.request))
        total = count * len(starts) * len(self.inputs.windows)
        place = None if saved is None else place_of(saved)
        finished = [] if place is None else place.finished
        made = [] if place is None else place.made
        for start in starts[len(finished) :]:
            rows = range(start, min(start + group, batch))
            # drawn by a resumed run too: known frames are put back with it
            noise = self._noise(rows)
            for number in range(len(made), len(self.inputs.windows)):
                if number or start:
                    scheduler = self.pipe.new_scheduler(self.request)
                before = (len(finished) * len(self.inputs.windows) + number) * count
                work = _Work(rows, number, finished, made, before, total)
                x = self._window(work, scheduler, noise, saved).cpu()
                made = [
                    *made,
                    self._new(number, x),
                ]  # new lists: a place that is yet to be saved has the old ones
                saved = None
                if self.caching is not None:
                    self.caching.let_go()
            finished, made = [*finished, torch.cat(made, dim=2)], []
        return torch.cat(finished), total

    def _new(self, number: int, x: Tensor) -> Tensor:
        """The latents that a window adds to the video: those that it shares with others are theirs."""
        windows = self.inputs.windows
        if windows.is_pixels or len(windows) == 1:
            return x
        window = windows.all[number]
        return x[:, :, window.before : window.num_latents - window.after].clone()

    def _window(self, work: _Work, scheduler: Any, noise: Tensor, saved: dict[str, Any] | None) -> Tensor:
        """Latents (N, C, t, h, w) of a window of the videos that are denoised together.

        noise: (N, C, t, h, w), of the whole videos.
        """
        rows = work.rows
        predict = self._predictor(work, scheduler)
        first = first_step(scheduler, strength_of(self.request))
        resumed = None
        noise = _cut(noise, self.inputs.windows.all[work.number]).to(self.pipe.device, torch.float32)
        if saved is not None:
            put_back(saved, scheduler, self.generators, predict, self.caching)
            resumed = place_of(saved).passes, place_of(saved).x
        start = None
        if predict.known is not None and first:
            start = noised(scheduler, predict.known.latents, noise, first)

        def state(passes: int, x: Tensor) -> dict[str, Any]:
            here = Place(rows.start, passes, x, work.finished, work.made)
            return capture(here, scheduler, self.generators, predict, self.caching)

        def on_step(passes: int, x: Tensor) -> None:
            done = work.before + passes
            # the last place of all is that of the finished latents
            if self.run is not None and done < work.total:
                self.run.offer("denoising", done, work.total, lambda: state(passes, x))
            self.step("denoising", done, work.total)

        self.step("denoising", work.before + (0 if resumed is None else resumed[0]), work.total)
        x = denoise(
            predict,
            scheduler,
            noise,
            self.generators[rows.start : rows.stop],
            on_step,
            resumed=resumed,
            on_clean=self._on_clean(work.before),
            start=start,
            first=first,
        )
        return self.inputs.settled(work.number, rows, x)

    def _predictor(self, work: _Work, scheduler: Any) -> NoisePredictor:
        denoiser, request, rows = self.pipe.denoiser, self.request, work.rows
        text = self.texts[texts_in_force(request.prompts_at, self.inputs.windows)[work.number]]
        embeds, mask = text.rows(rows.start, rows.stop)
        config = getattr(denoiser, "config", None)
        known = self.inputs.of(work.number, rows, work.made)
        return NoisePredictor(
            denoiser,
            (embeds, mask),
            size_conditions(config, embeds.shape[0], request.height, request.width, embeds),
            request.guidance_scale,
            self.pipe.geometry.latent_channels,
            [float(timestep) for timestep in scheduler.timesteps],
            self.caching,
            has_cuda_graphs=self.pipe.has_cuda_graphs,
            formats=self.formats,
            known=None if known is None else known.to(self.pipe.device),
        )

    def _noise(self, rows: range) -> Tensor:
        """Unit noise (N, C, t, h, w) of whole videos: drawn for a window and repeated, unless it is given."""
        request = self.request
        if request.latents is not None:
            return request.latents[rows.start : rows.stop]
        shape = self.pipe.geometry.latent_shape(len(rows), request.num_frames, request.height, request.width)
        places = self.inputs.windows.noise_places
        drawn = (*shape[:2], max(places) + 1, *shape[3:])
        return draw_noise(drawn, self.generators[rows.start : rows.stop])[:, :, places]

    def _on_clean(self, before: int) -> Callable[[int, Tensor], None] | None:
        preview = self.preview
        if preview is None:
            return None
        return lambda passes, clean: preview(before + passes, clean[0])


@dataclass(frozen=True, slots=True)
class _Work:
    """One window of some videos. finished, made: see Place. before, total: network passes of the whole run."""

    rows: range
    number: int
    finished: list[Tensor]
    made: list[Tensor]
    before: int
    total: int


def _cut(latents: Tensor, window: Window) -> Tensor:
    """A window of latents (N, C, t, h, w); past the end they begin again."""
    count = latents.shape[2]
    part = latents[:, :, window.start : window.stop]
    return part if window.stop <= count else torch.cat([part, latents[:, :, : window.stop - count]], dim=2)
