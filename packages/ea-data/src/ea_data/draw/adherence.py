"""The metric `adherence`: whether a video shows what its prompt says, for prompts of drawn scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ea_data.draw.caption import parse_prompt
from ea_data.draw.check import check_clip
from ea_runtime.errors import UserError

if TYPE_CHECKING:
    from ea_runtime.evaluation.clip import Clip

#: attributes that a prompt of a drawn scene names at least: other prompts say "red" or "large", too
_LEAST = ("colour", "shape")


def adherence(clip: Clip) -> float | None:
    """Share of the attributes that the prompt names (colour, shape, size, motion, background) that the pixels show.

    0 to 1; None if the prompt names no colour or no shape of drawn scenes. Raises UserError for fewer than 16 pixels a
    side.
    """
    if not clip.prompt or not parse_prompt(clip.prompt).keys() >= set(_LEAST):
        return None
    try:
        right = check_clip(clip.prompt, clip.frames).right
    except ValueError as error:
        raise UserError(f"adherence: {error}") from error
    return sum(right.values()) / len(right)
