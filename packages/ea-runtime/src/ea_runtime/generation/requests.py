"""What a request may ask for: checked here, in one line each, before any work. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.models.geometry import check_int, short
from ea_runtime.plugins.host import get_host
from ea_runtime.records import Record
from ea_runtime.text.encoder import check_prompt

#: torch.Generator takes 64 bits; one is kept so that seed + i stays in range.
MAX_SEED = (1 << 63) - 1


def check_steps(value: Any) -> int:
    """`num_inference_steps` as an int; what a sampler cannot do is found when its scheduler is made."""
    return check_int("num_inference_steps", value, 1, 1000)


def check_guidance(value: Any) -> float:
    """`guidance_scale` as a finite float of 0 or more; 1 and below mean no guidance."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UserError(f"`guidance_scale` must be a number of 0 or more, got {short(value)}")
    number = float(value)
    if not math.isfinite(number) or not 0 <= number <= 1000:
        raise UserError(
            f"`guidance_scale` must be a finite number from 0 to 1000, got {number}; 6 is usual, 1 is off"
        )
    return number


def check_sampler(name: Any) -> Record:
    """The sampler's record. Raises UserError with the names there are."""
    if not isinstance(name, str):
        known = ", ".join(get_host().records("samplers"))
        raise UserError(f"`sampler` must be one of {known}, got {short(name)}")
    return get_host().get("samplers", name)


def check_seeds(seed: Any, batch: int) -> list[int]:
    """One seed for each video: seed + i, or the list given."""
    if isinstance(seed, Sequence) and not isinstance(seed, str | bytes):
        if len(seed) != batch:
            raise UserError(
                f"`seed` must be one number or a list of {batch}, one for each video, got {len(seed)}"
            )
        return [check_int("seed", one, 0, MAX_SEED) for one in seed]
    first = check_int("seed", seed, 0, MAX_SEED - batch)
    return [first + i for i in range(batch)]


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
