"""One generation as it is asked for: the type that the command, the sidecar and the pipeline share, and its checks.

Each check is one line for the user, before any work. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Self

from ea_runtime.errors import UserError
from ea_runtime.generation.step_cache import check_step_cache
from ea_runtime.generation.timed_prompts import checked_prompts, split_first
from ea_runtime.generation.windows import JOINS, MAX_FRAMES, Windows, plan_windows, settled_window, windows_of
from ea_runtime.models.geometry import MAX_PIXELS, Geometry, check_int, short
from ea_runtime.models.layout import GenerationDefaults
from ea_runtime.plugins.host import get_host
from ea_runtime.records import Record
from ea_runtime.text.encoder import check_prompt

if TYPE_CHECKING:
    from torch import Generator, Tensor

#: torch's generator on the CPU takes 64 bits and keeps the low 32
MAX_SEED = (1 << 32) - 1
#: this many times the pixels that a model was trained on, or that fraction of them, is far from it
FAR = 3
#: the value of a field that is left out; typed so that a request with its gaps filled (`over`) reads as complete
_LEFT_OUT: Any = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `VideoPipeline.__call__` by their names there; None: left out."""

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] = _LEFT_OUT
    num_frames: int = _LEFT_OUT
    height: int = _LEFT_OUT
    width: int = _LEFT_OUT
    num_inference_steps: int = _LEFT_OUT
    guidance_scale: float = _LEFT_OUT
    sampler: str = _LEFT_OUT
    smooth: bool = _LEFT_OUT
    step_cache: str | None = None
    seed: int | Sequence[int] | None = None
    generator: Generator | Sequence[Generator] | None = None
    latents: Tensor | None = None
    prompt_embeds: Tensor | None = None
    prompt_attention_mask: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None
    image: Any = None
    image_end: Any = None
    video: Any = None
    mask: Any = None
    strength: float | None = None
    fit: str | None = None
    posterior: str | None = None
    clip_image_embeds: Tensor | None = None
    clip_apply_ratio: float | None = None
    prompts_at: Any = None
    window: int | None = None
    loop: bool | None = None
    join: str | None = None
    output: Literal["frames", "latents"] = _LEFT_OUT
    batch_size: int = _LEFT_OUT

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """From the `locals()` at a function's start: the arguments that are named like a field."""
        return cls(**{one.name: arguments[one.name] for one in fields(cls) if one.name in arguments})

    @classmethod
    def of_model(cls, defaults: GenerationDefaults, **more: Any) -> Self:
        """The settings that suit a model, without its seed: a pipeline draws one."""
        return cls(
            num_frames=defaults.num_frames,
            height=defaults.height,
            width=defaults.width,
            num_inference_steps=defaults.steps,
            guidance_scale=defaults.guidance,
            sampler=defaults.sampler,
            **more,
        )

    def over(self, *others: Request) -> Self:
        """This request, with each field that it leaves out taken from the first of `others` that has it."""
        sources = (self, *others)
        found = {f.name: [getattr(one, f.name, None) for one in sources] for f in fields(self)}
        return replace(self, **{n: next((v for v in vs if v is not None), None) for n, vs in found.items()})

    def with_first_prompt(self) -> Self:
        """The request with the text that `prompts_at` has at time 0 as its prompt. Raises UserError if it has both."""
        if self.prompts_at is None:
            return self
        has_prompt = self.prompt is not None or self.prompt_embeds is not None
        first, later = split_first(self.prompts_at, has_prompt)
        return replace(self, prompts_at=later, **({} if first is None else {"prompt": first}))

    def checked(
        self,
        geometry: Geometry,
        batch: int = 1,
        max_pixels: int = MAX_PIXELS,
        defaults: GenerationDefaults | None = None,
    ) -> Self:
        """The request of `batch` videos, its numbers as int and float, its windows settled.

        max_pixels: of what is in memory at once: a window, or all frames with output "frames". defaults: the model's.
        Texts, seeds and tensors are checked where they are read. Raises UserError.
        """
        own = defaults or GenerationDefaults()
        windows = self._windows(geometry, own)
        num_frames = windows.num_frames
        height, width = geometry.check_size(self.height, self.width, max_pixels)
        at_once = num_frames if self.output == "frames" else windows.longest
        geometry.check_budget(batch, at_once, height, width, max_pixels)
        check_step_cache(self.step_cache)
        if not isinstance(self.smooth, bool):
            raise UserError(f"`smooth` must be True or False, got {self.smooth!r}")
        return replace(
            self,
            num_frames=num_frames,
            height=height,
            width=width,
            prompts_at=checked_prompts(self.prompts_at, windows, getattr(self, "fps", None) or own.fps),
            window=settled_window(geometry, own, num_frames, self.window, bool(self.loop)),
            loop=self.loop or None,
            join=None if windows.join == JOINS[0] else windows.join,
            num_inference_steps=check_int("num_inference_steps", self.num_inference_steps, 1, 1000),
            guidance_scale=check_guidance(self.guidance_scale),
            sampler=check_sampler(self.sampler).name,
        )

    def _windows(self, geometry: Geometry, defaults: GenerationDefaults) -> Windows:
        """The windows of the video. Raises UserError for what they cannot be."""
        join = self.join or JOINS[0]
        if join not in JOINS:
            raise UserError(f"`join` must be one of {', '.join(JOINS)}, got {short(join)}")
        if self.loop not in (None, True, False):
            raise UserError(f"`loop` must be True or False, got {short(self.loop)}")
        if check_int("num_frames", self.num_frames) > MAX_FRAMES:
            raise UserError(f"`num_frames` must be at most {MAX_FRAMES:,}, got {self.num_frames:,}")
        # positions bound a window, not a video
        num_frames = replace(geometry, max_latent_frames=None).check_num_frames(self.num_frames)
        loop = bool(self.loop)
        window = settled_window(geometry, defaults, num_frames, self.window, loop)
        windows = plan_windows(geometry, num_frames, window, loop=loop, join=join)
        if join != JOINS[0] and (loop or len(windows) == 1):
            why = "a loop is joined as latents" if loop else "this video is made in one piece"
            raise UserError(f"`join` {join!r} is for videos of several windows, and {why}; leave it out")
        geometry.check_num_frames(windows.longest)
        return windows

    def windows(self, geometry: Geometry) -> Windows:
        """The windows of a checked request."""
        return windows_of(self.settings, geometry)

    @property
    def has_guidance(self) -> bool:
        """True if the network runs without the prompt as well. Raises UserError."""
        return check_guidance(self.guidance_scale) > 1

    def notes(self, defaults: GenerationDefaults) -> list[str]:
        """Lines about settings of a checked request that are not used, or that the model was not trained for."""
        found = []
        negatives = [self.negative_prompt] if isinstance(self.negative_prompt, str) else self.negative_prompt
        if any(negatives or ()) and not self.has_guidance:
            found.append(
                f"the negative prompt is not used at guidance {self.guidance_scale:g}; give guidance above 1"
            )
        share = self.height * self.width / (defaults.height * defaults.width)
        if not 1 / FAR <= share <= FAR:
            found.append(
                f"{self.width}x{self.height} is far from {defaults.width}x{defaults.height}, the size that suits this "
                "model; expect poorer pictures"
            )
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of a pipeline's call that are not left out."""
        found = {one.name: getattr(self, one.name) for one in fields(Request)}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ModelRequest(Request):
    """A request with the model and the machine that serve it: options of `ea generate`, records of a sidecar."""

    model: str = _LEFT_OUT
    fps: float = _LEFT_OUT
    device: str | None = None
    dtype: str | None = None
    engine: str = _LEFT_OUT
    bundle: str | None = None
    compile: bool = _LEFT_OUT
    cuda_graphs: bool = _LEFT_OUT
    quantize: str | None = None
    attention: str | None = None
    offload: str = _LEFT_OUT
    lora: Sequence[str] | None = None


def check_guidance(value: Any) -> float:
    """`guidance_scale` as a finite float of 0 or more; 1 and below mean no guidance."""
    if not _is_number(value):
        raise UserError(f"`guidance_scale` must be a number of 0 or more, got {short(value)}")
    if not 0 <= value <= 1000:  # NaN is neither
        raise UserError(
            f"`guidance_scale` must be a finite number from 0 to 1000, got {short(value)}; 6 is usual, 1 is off"
        )
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_sampler(name: Any) -> Record:
    """The sampler's record. Raises UserError with the names there are."""
    if not isinstance(name, str):
        known = ", ".join(get_host().records("samplers"))
        raise UserError(f"`sampler` must be one of {known}, got {short(name)}")
    return get_host().get("samplers", name)


def random_seed() -> int:
    """A seed at random, from the lower half of the range: a batch counts up from it."""
    return int.from_bytes(os.urandom(4), "big") >> 1


def check_seeds(seed: Any, batch: int) -> list[int]:
    """One seed for each video: seed + i, or the list given."""
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
        if len(seed) != batch:
            raise UserError(
                f"`seed` must be one number or a list of {batch}, one for each video, got {len(seed)}"
            )
        return [_check_seed(one) for one in seed]
    first = _check_seed(seed, batch)
    return [first + i for i in range(batch)]


def _check_seed(seed: Any, batch: int = 1) -> int:
    number, most = check_int("seed", seed, 0), MAX_SEED - batch + 1
    if most < number <= MAX_SEED:
        raise UserError(
            f"`seed` must be at most {most:,} for {batch} videos, each of which adds 1, got {number}"
        )
    if number > most:
        raise UserError(
            f"`seed` must be at most {most:,}, got {number}; the noise depends on the low 32 bits alone, so "
            f"{number % (MAX_SEED + 1)} draws the same"
        )
    return number


def check_prompts(prompt: Any, name: str = "prompt") -> list[str]:
    """A prompt or a list of them as a list, each within the cap on its size. Raises UserError."""
    if not isinstance(prompt, str | list | tuple):
        raise UserError(f"`{name}` must be text or a list of texts, got {short(prompt)}")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise UserError(f"`{name}` must hold at least one text, got an empty list; an empty prompt is ''")
    for text in prompts:
        if not isinstance(text, str):
            raise UserError(f"`{name}` must be text or a list of texts, got a list with {short(text)}")
        check_prompt(text, name=name)
    return prompts


def check_negatives(negative_prompt: Any, batch: int) -> list[str]:
    """One negative prompt for each video."""
    negatives = check_prompts("" if negative_prompt is None else negative_prompt, "negative_prompt")
    if len(negatives) == 1:
        return negatives * batch
    if len(negatives) != batch:
        raise UserError(
            f"`negative_prompt` must be one text or a list of {batch}, one for each prompt, "
            f"got {len(negatives)}"
        )
    return negatives
