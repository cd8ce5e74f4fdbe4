"""VideoPipeline: prompt -> latents -> frames. The one pipeline, for videos and for pictures (one frame).

Shapes: B videos, T frames of H x W pixels, latents (B, C, t, h, w), text (B, L, D).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.generation.checking import check_call
from ea_runtime.generation.decoding import decode_all, decoded
from ea_runtime.generation.denoise import has_cache, plan_steps
from ea_runtime.generation.groups import Denoising
from ea_runtime.generation.inputs import check_known_frames
from ea_runtime.generation.known_frames import KnownFrames
from ea_runtime.generation.known_inputs import encode_inputs
from ea_runtime.generation.latents import draw_seed
from ea_runtime.generation.offload import apply_offload, check_offload
from ea_runtime.generation.out_of_memory import explained
from ea_runtime.generation.prompts import encode_text
from ea_runtime.generation.requests import Request, check_prompts, check_sampler
from ea_runtime.generation.result import OnPreview, OnStep, VideoOutput
from ea_runtime.generation.step_cache import StepCaching, check_step_cache
from ea_runtime.generation.window_inputs import WindowInputs
from ea_runtime.generation.windows import Windows
from ea_runtime.machine.casting import cast
from ea_runtime.machine.computing import compute_device, compute_dtype
from ea_runtime.machine.device import Timed, choose_device, choose_dtype
from ea_runtime.machine.formats import PartFormats
from ea_runtime.models.geometry import MAX_PIXELS, Geometry
from ea_runtime.models.image_encoder import image_encoder_of
from ea_runtime.models.layout import GenerationDefaults
from ea_runtime.models.quantize import Quantize, check_engine, parse_quantize
from ea_runtime.samplers.schedule import schedule_of_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ea_runtime.generation.run_state import RunState
    from ea_runtime.planning.forecast import Forecast

logger = logging.getLogger("ea")

#: shapes that a block may be compiled for: of V2's VAE at one size, with smoothing, more than torch's usual 8
_SHAPES = 64


class VideoPipeline:
    """The parts of a model and how they make a video of a prompt.

    Args:
        vae: decodes latents (`iter_decode`); None allows output="latents" only.
        denoiser: predicts noise.
        text: a TextEncoder (anything with `encode(prompts)`); a bare T5EncoderModel or None, which want
            embeddings in place of prompts.
        scheduler_config: the noise schedule (betas, steps); None is V2's. Taken as it is.
        defaults: what a call leaves out; None is V2's script.
        device, dtype: move the parts there; None leaves them.
        model: the model's name, for records.

    A pipeline keeps nothing of a run: equal settings give equal bits, whatever ran before or failed.
    `max_pixels` bounds frames x height x width of what is in memory at once.
    """

    max_pixels: int = MAX_PIXELS
    #: the engine that `from_pretrained` loaded the parts with (engines/base.py); None: the parts were given
    engine: Any = None
    #: the forms that `from_pretrained` gave weights in fewer bits
    quantize: Quantize | None = None
    #: of a model of V3 whose folder has one (models/image_encoder.py)
    image_encoder: Any = None
    #: where weights wait that are not in use (offload.py)
    offload: str = "none"

    def __init__(
        self,
        vae: Any = None,
        denoiser: Any = None,
        text: Any = None,
        *,
        scheduler_config: Mapping[str, Any] | None = None,
        defaults: GenerationDefaults | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        model: str | None = None,
    ) -> None:
        if denoiser is None:
            raise UserError("`denoiser` must be a denoiser such as ea_dit.Transformer3DModel, got None")
        self.vae = vae
        self.denoiser = denoiser
        self.text = text
        self.scheduler_config = dict(scheduler_config or {})
        self.defaults = defaults or GenerationDefaults()
        self.model = model
        self.has_cuda_graphs = False
        self._formats = PartFormats(logger.warning)
        for part in (vae, denoiser, text):
            if hasattr(part, "eval"):
                part.eval()
        self.geometry = Geometry.from_configs(getattr(vae, "config", None), getattr(denoiser, "config", None))
        if device is not None or dtype is not None:
            self.to(device, dtype)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        engine: str = "torch",
        bundle: str | os.PathLike[str] | None = None,
        parts: Iterable[str] | None = None,
        quantize: str | Mapping[str, str] | Quantize | None = None,
        attention: str | None = None,
        offload: str = "none",
    ) -> VideoPipeline:
        """Load a model folder or the bundled "tiny".

        engine: what runs the networks: "torch", "onnx", "trt", "trt-rtx" or a plugin's. bundle: the folder that
        `ea export` wrote, for all but "torch"; its size is then the default, and the only one.

        device: None takes cuda, mps or cpu, the first there is. dtype: None takes what suits the device
        (device.py); with float16 the VAE runs in float32, as in V2. parts: of "vae", "denoiser", "text"; None
        loads all. offload: where weights wait that are not in use: "none", "model", "group" or "sequential"
        (offload.py); the result is the same.

        quantize: weights in fewer bits, "int8", "fp8", "nf4", "fp8-unscaled" or a .gguf file for the denoiser's
        layers, or {"denoiser": "int8", "text": "nf4"}; None keeps them (models/quantize.py). attention: what computes
        the denoiser's attention, such as "flash" or "sage", where its package is installed; None is torch's own.

        Raises MissingPackageError if a part's package is not installed, UserError for everything else.
        """
        from ea_runtime.plugins.host import get_host

        wanted = ("vae", "denoiser", "text") if parts is None else tuple(parts)
        forms = parse_quantize(quantize)
        check_engine(engine, forms, attention, offload)
        record = get_host().get("engines", engine)
        own = {} if forms is None else {"quantize": forms}
        made = record.build(model, bundle=bundle, device=device, dtype=dtype, **own)
        check_offload(offload, made)
        loaded = made.load(wanted)
        pipe = cls(
            loaded.vae,
            loaded.denoiser,
            loaded.text,
            scheduler_config=schedule_of_model(loaded.scheduler_config),
            defaults=loaded.defaults,
            model=os.fspath(model),
        )
        pipe.engine = made
        pipe.quantize = forms
        if attention is not None:
            pipe.set_attention(attention)
        pipe.image_encoder = image_encoder_of(loaded)
        apply_offload(pipe, offload, made)
        return pipe

    @property
    def device(self) -> torch.device:
        """The device that the denoiser computes on."""
        return compute_device(self.denoiser)

    @property
    def dtype(self) -> torch.dtype:
        """The number format that the denoiser computes in."""
        return compute_dtype(self.denoiser)

    def to(
        self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
    ) -> VideoPipeline:
        """Move all parts; None leaves that as it is. With float16 the VAE goes to float32. Returns self.

        Raises UserError if weights are offloaded: they have their place and format from loading.
        """
        if self.offload != "none":
            raise UserError(
                f"this pipeline was loaded with offload={self.offload!r} and cannot be moved; load it again with "
                "`device` and `dtype`"
            )
        new_device = None if device is None else choose_device(device)
        new_dtype = None if dtype is None else choose_dtype(new_device or self.device, dtype)
        if self.quantize is not None and new_dtype not in (None, self.dtype):
            raise UserError(
                f"`dtype` of a quantised pipeline cannot change (it is {self.dtype}); load it with dtype="
            )
        new_dtype = None if self.quantize is not None else new_dtype
        for part in (self.vae, self.denoiser, self.text):
            if hasattr(part, "to"):
                part_dtype = torch.float32 if part is self.vae and new_dtype == torch.float16 else new_dtype
                if isinstance(part, torch.nn.Module):
                    cast(part, new_device, part_dtype)
                    continue
                place = {"device": new_device, "dtype": part_dtype}
                part.to(**{name: value for name, value in place.items() if value is not None})
        return self

    def set_attention(self, name: str) -> VideoPipeline:
        """Let another backend of diffusers' compute the denoiser's attention; "native" is torch's own.

        Returns self. Raises UserError for an unknown backend, one that is not installed, one that would fetch code from
        a server, and one that does not run on this device in this number format: it is tried.
        """
        change = getattr(self.denoiser, "set_attention_backend", None)
        if change is None:
            raise UserError(
                f"`attention` cannot be changed in a {type(self.denoiser).__name__}; leave it out"
            )
        try:
            change(name)
        except ValueError as error:
            raise UserError(str(error)) from error
        return self

    def compile(self, cuda_graphs: bool = False) -> VideoPipeline:
        """Compile the repeated blocks of the denoiser and of the VAE with torch.compile, when they first run.

        Block by block, so that one compilation serves all blocks of a shape; names and state dict stay. Put adapters
        on before. Rounding differs from uncompiled runs. Needs a C++ compiler, on CUDA also Triton.

        Args:
            cuda_graphs: on CUDA, replay each block's kernels as one graph; not together with a step cache.

        Returns self. Raises UserError for a denoiser that names no repeated blocks, and for graphs without CUDA.
        """
        if self.offload != "none":
            raise UserError(
                f"`compile` cannot be combined with offload={self.offload!r}; leave one of them out"
            )
        if cuda_graphs and self.device.type != "cuda":
            raise UserError(f"`cuda_graphs` needs a CUDA device, got {str(self.device)!r}; leave it out")
        if not getattr(self.denoiser, "_repeated_blocks", None):
            raise UserError(
                f"`compile` needs a denoiser that names its blocks, and {type(self.denoiser).__name__} does not"
            )
        import torch._dynamo.config as dynamo  # takes as long to import as torch

        # one compilation a shape; beyond 8, torch's own limit, blocks would run uncompiled
        dynamo.recompile_limit = max(dynamo.recompile_limit, _SHAPES)
        options = {"mode": "reduce-overhead"} if cuda_graphs else {}
        for part in (self.denoiser, self.vae):
            if getattr(part, "_repeated_blocks", None):
                part.compile_repeated_blocks(dynamic=False, **options)
        self.has_cuda_graphs = cuda_graphs
        return self

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = "",
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output: Literal["frames", "latents"] = "frames",
        on_step: OnStep | None = None,
        smooth: bool = True,
        batch_size: int = 1,
        step_cache: str | None = None,
        on_preview: OnPreview | None = None,
        run: RunState | None = None,
        image: Any = None,
        image_end: Any = None,
        video: Any = None,
        mask: Any = None,
        strength: float | None = None,
        fit: str | None = None,
        posterior: str | None = None,
        clip_image_embeds: Tensor | None = None,
        clip_apply_ratio: float | None = None,
        prompts_at: Any = None,
        window: int | None = None,
        loop: bool | None = None,
        join: str | None = None,
    ) -> VideoOutput:
        """Make one video for each prompt. What is left out comes from `self.defaults` (sampler "dpm++").

        Args:
            prompt: a text, or a list for several videos; "" is allowed; None with `prompt_embeds`.
            negative_prompt: what to stay away from; one for all videos or one for each.
            num_frames: 1 (a picture) or what fits the VAE. height, width: pixels, multiples of 16.
            num_inference_steps: of the sampler. guidance_scale: classifier-free guidance; 1 and below turn it
            off.
            seed: video i draws from seed + i (a list: from its own), always on the CPU in float32. None picks
                one and reports it in `settings`. generator: in place of a seed; it is used up.
            latents: unit noise (B, C, t, h, w) to start from in place of drawn noise.
            prompt_embeds, negative_prompt_embeds: (B, L, D) in place of texts; *_attention_mask: (B, L),
            None: all ones.
            output: "frames", or "latents" without decoding (then `iter_frames` decodes as a stream).
            on_step: progress; an exception raised in it stops the run.
            smooth: V2's second pass over the seams between the VAE's chunks.
            batch_size: videos per network pass. With 1 each video of a batch is bit-exact with
                a separate run; more is faster on a GPU and differs from it by rounding.
            step_cache: approximate: NAME:THRESHOLD such as "teacache:0.1" skips network passes that would
            change little (step_cache.py); None computes all.
            on_preview: is shown what each network pass leads to; does not change the result.
            run: where denoising saves its place, and what it resumes from (run_state.py); call its `begin` before.
            image, image_end: the first and the last frame: a file, a PIL picture, an array (H, W, 3) of uint8, or a
                tensor (3, H, W) or (B, 3, H, W) in 0..1.
            video: to start from or to keep in part: a file, an array (T, H, W, 3), a list of pictures, or a tensor
                (1 or B, 3, T, H, W) in 0..1. mask: the part of it that is made, white: a picture, a video, or a
                tensor (1 or B, 1, T, H, W), above half of its largest value.
            strength: above 0 to 1: the share of the steps, and so of the noise, that `video` or `image` goes
                through. Default 1, with a video but no mask 0.6.
            fit: "crop" (default), "pad" or "stretch" to the size.
            posterior: "mode" (default) or "sample": how the VAE's encoder is read.
            clip_image_embeds: (1 or B, 768), CLIP's embedding of the picture, for V3, in place of that which
                `image_encoder` makes of a known first frame; it counts in the last clip_apply_ratio (0.5) of the steps.
            prompts_at: texts that take the prompt's place from a time on: "1.5s: a red circle | 36f: a blue one", or
                pairs of a time and a text. Seconds are of the model's own frame rate.
            window: frames that are denoised at once; a longer video is made window by window. Default: the model's own
                number of frames.
            loop: the last frames lead into the first. join: "latents" (default), or "pixels" as V2's script does it.

        Raises UserError, before any work, for what cannot be done; MissingPackageError without a VAE;
            OutOfMemoryError; UserError if latents or frames are no longer finite.
        """
        request, generators, windows = check_call(self, Request.of(locals()))
        if request.output == "frames" or windows.is_pixels:
            self._require_vae()
        caching = check_step_cache(request.step_cache)
        cache = self._check_cache(caching, run)
        settings = request.settings | ({} if caching is None else {"step_cache": caching.text})
        scheduler = self.new_scheduler(request)
        shape = (windows.longest, request.height, request.width)
        step = on_step or (lambda phase, done, total: None)
        timings: dict[str, float] = {}
        saved = None if run is None else run.load(self.device)
        if saved is not None and "latents" in saved:
            total = saved["passes"]
            step("denoising", total, total)
            result = VideoOutput(
                None, saved["latents"], settings, saved["timings"], saved["notes"], saved["decode_seeds"]
            )
            return self._with_frames(result, output, step)
        with torch.inference_mode():
            with (
                Timed("text", timings, self.device),
                explained("reading the prompt for", self.geometry, *shape),
                self._formats.watch(getattr(self.text, "model", self.text)),
            ):
                texts, notes = encode_text(request, self.text, step, self.device, self.dtype)
            inputs = self._inputs(request, windows, len(generators), timings)
            if inputs.is_empty:
                timings.pop("encoding", None)
            notes = [*request.notes(self.defaults), *inputs.notes, *notes, *cache]
            for note in notes:
                logger.warning("%s", note)
            with Timed("denoising", timings, self.device), explained("denoising", self.geometry, *shape):
                work = Denoising(
                    self, request, texts, generators, caching, self._formats, step, on_preview, run, inputs
                )
                encoded = timings.get("encoding", 0.0)
                found, passes = work.run_all(scheduler, saved)
            # windows encode when their turn comes
            timings["denoising"] -= timings.get("encoding", 0.0) - encoded
        if caching is not None:
            notes = [*notes, caching.note]
            logger.warning("%s", caching.note)
        found = found.clone()  # made outside inference mode: an ordinary tensor
        result = VideoOutput(None, found, settings, timings, notes, [draw_seed(one) for one in generators])
        if run is not None:
            run.offer("denoised", passes, passes, lambda: _finished(result, passes))
        return self._with_frames(result, output, step)

    def _inputs(
        self, request: Request, windows: Windows, batch: int, timings: dict[str, float]
    ) -> WindowInputs:
        """The known frames of a checked request. timings: gets the seconds of encoding, whenever it happens."""
        config, keeps = getattr(self.denoiser, "config", None), self.defaults.keep_known

        @contextmanager
        def watch() -> Iterator[None]:
            with Timed("encoding", timings, self.device), self._formats.watch(self.vae):
                yield

        def encode(one: Request) -> tuple[KnownFrames | None, tuple[str, ...]]:
            with watch():
                return encode_inputs(one, self.vae, self.geometry, config, batch, self.image_encoder, keeps)

        def decode(latents: Tensor, count: int, start: int) -> Iterator[np.ndarray]:
            return self.iter_frames(latents, smooth=False, num_frames=count, start=start)

        return WindowInputs(
            request, windows, self.vae, self.geometry, config, batch, encode, decode, watch, keeps
        )

    def _with_frames(self, result: VideoOutput, output: str, step: OnStep) -> VideoOutput:
        if output == "frames":
            with Timed("decoding", result.timings, self.device):
                result.frames = decode_all(self, result, step)
        return result

    def plan(
        self, prompt: str | Sequence[str] = "", *, memory: str | None = None, **settings: Any
    ) -> Forecast:
        """The memory and time of a call with these arguments, which is not made.

        Args:
            prompt: as in a call; of its text only the length counts.
            memory: counted as free on the device, such as "24GiB"; None: what is free now, and what the parts take.
            settings: any other arguments of a call.

        Returns a `planning.forecast.Forecast`: `fits`, `peak` in bytes, `phases`, `way`, `nearest`, `seconds`. Raises
        UserError as the call would.
        """
        from ea_runtime.generation.forecasts import forecast_pipeline
        from ea_runtime.planning.room import parse_memory

        wrong = next(
            (name for name in settings if name not in signature(type(self).__call__).parameters), None
        )
        if wrong is not None:
            raise UserError(f"`plan` takes the arguments of a call, got {wrong[:40]!r}; leave it out")
        own = Request.of_model(self.defaults, negative_prompt="", smooth=True, batch_size=1)
        asked = Request.of({"prompt": prompt, **settings}).over(own)
        batch = len(check_prompts(prompt))
        check_known_frames(asked)
        checked = asked.checked(self.geometry, batch, self.max_pixels, self.defaults)
        return forecast_pipeline(self, checked, batch, None if memory is None else parse_memory(memory))

    def iter_frames(
        self,
        latents: Tensor,
        *,
        seed: int = 0,
        smooth: bool = True,
        num_frames: int | None = None,
        start: int = 0,
        is_tiled: bool = False,
    ) -> Iterator[np.ndarray]:
        """Decode one video as a stream: (H, W, 3) uint8 frames, as soon as each is final, in constant memory.

        Args:
            latents: (C, t, h, w) or (1, C, t, h, w), the denoiser's scale, as in `VideoOutput.latents`.
            seed: for the noise of smoothing, from `VideoOutput.decode_seeds`.
            num_frames: for the slice VAE, where two numbers of frames share a number of latent frames.
            start: the first frame to yield; those before are decoded only as far as it needs them.
            is_tiled: in tiles from the start, as where memory has run out already.
        """
        self._require_vae()
        return decoded(
            self.vae,
            self.geometry,
            self._formats,
            latents,
            seed=seed,
            smooth=smooth,
            num_frames=num_frames,
            start=start,
            is_tiled=is_tiled,
        )

    def new_scheduler(self, request: Request) -> Any:
        """A new scheduler: it keeps state while it runs. Raises UserError if it cannot do that many steps."""
        record = check_sampler(request.sampler)
        return plan_steps(record, self.scheduler_config, request.num_inference_steps)

    def _check_cache(self, caching: StepCaching | None, run: RunState | None) -> list[str]:
        """A note if one of diffusers' caches is on. Raises UserError for what it cannot be combined with."""
        if not has_cache(self.denoiser):
            return []
        name = type(self.denoiser._cache_config).__name__
        if caching is not None or run is not None:
            what = "a run that is saved" if caching is None else "`step_cache`"
            raise UserError(
                f"{what} cannot be combined with the denoiser's {name}; call pipe.denoiser.disable_cache() first"
            )
        return [f"approximate: the denoiser's {name} is on"]

    def _require_vae(self) -> None:
        if self.vae is None:
            raise MissingPackageError(
                "decoding needs a VAE, and this pipeline has none; run `pip install ea-vae` and give `vae=`, "
                "or ask for output='latents'"
            )


def _finished(result: VideoOutput, passes: int) -> dict[str, Any]:
    """The part of a denoised run that decoding needs."""
    return {
        "passes": passes,
        "latents": result.latents,
        "decode_seeds": result.decode_seeds,
        "notes": result.notes,
        "timings": result.timings,
    }
