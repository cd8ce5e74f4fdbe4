"""Prompts that change with time: "0s: a red circle moves right | 1.5s: it moves left". Imports no torch.

In a checked request they are pairs ["36f", text] in the order of their frames; the one at frame 0 is the prompt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError
from ea_runtime.models.geometry import short
from ea_runtime.text.cleaning import check_prompt

if TYPE_CHECKING:
    from ea_runtime.generation.windows import Windows

_TIME = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([sf])\s*")
_EXAMPLE = "'0s: a red circle moves right | 1.5s: it moves left' (or 36f for a frame)"
_MAX_TEXTS = 1000


@dataclass(frozen=True, slots=True)
class TimedPrompt:
    """A text from a time on. unit: "s" or "f", a frame."""

    time: float
    unit: str
    text: str

    @property
    def name(self) -> str:
        """The time as it is written."""
        return f"{self.time:g}{self.unit}"

    def frame(self, fps: float) -> int:
        """The frame from which the text counts."""
        return int(self.time) if self.unit == "f" else round(self.time * fps)


def read_timed_prompts(value: Any) -> list[TimedPrompt]:
    """From text, or from pairs of a time and a text; a time is a number of seconds, "1.5s" or "36f".

    Raises UserError.
    """
    pairs: list[Any]
    if isinstance(value, str):
        pairs = [part.partition(":")[::2] for part in value.split("|")]
    elif isinstance(value, Sequence) and value:
        pairs = list(value)
    else:
        raise UserError(f"`prompts_at` must be such as {_EXAMPLE}, got {short(value)}")
    if len(pairs) > _MAX_TEXTS:
        raise UserError(f"`prompts_at` may have {_MAX_TEXTS} texts, got {len(pairs)}")
    return [_timed(pair) for pair in pairs]


def _timed(pair: Any) -> TimedPrompt:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[1], str):
        raise UserError(f"`prompts_at` must be pairs of a time and a text, got {short(pair)}")
    time, text = pair[0], pair[1].strip()
    if isinstance(time, int | float) and not isinstance(time, bool):
        time = f"{time:.9f}s" if math.isfinite(time) and 0 <= time < 1e9 else repr(time)
    match = _TIME.fullmatch(time) if isinstance(time, str) else None
    if match is None or not text or (match[2] == "f" and "." in match[1]):
        shown = f"{time}: {text}" if isinstance(time, str) else repr(time)
        raise UserError(f"`prompts_at` must be such as {_EXAMPLE}, got {shown[:60]!r}")
    check_prompt(text, name="prompts_at")
    return TimedPrompt(float(match[1]), match[2], text)


def split_first(value: Any, has_prompt: bool) -> tuple[str | None, list[list[str]] | None]:
    """The text at time 0, if there is one, and the others as pairs of a time and a text.

    has_prompt: there is a prompt, which counts from 0. Raises UserError for two texts at 0.
    """
    timed = read_timed_prompts(value)
    later = [[one.name, one.text] for one in timed]
    if timed[0].time > 0:
        return None, later
    if has_prompt:
        raise UserError(
            f"`prompts_at` has a text at {timed[0].name}, and there is a prompt, which counts from there; leave one out"
        )
    return timed[0].text, later[1:] or None


def checked_prompts(value: Any, windows: Windows, fps: float) -> list[list[str]] | None:
    """The texts after the prompt, by frames. Raises UserError for times in a wrong order, or without effect."""
    if value is None:
        return None
    timed = read_timed_prompts(value)
    starts = [one.first_made for one in windows.all]
    before = TimedPrompt(0, "s", "")
    frames = [0]
    for one in timed:
        frame = one.frame(fps)
        if frame >= windows.num_frames:
            raise UserError(
                f"`prompts_at` has a text at {one.name}, frame {frame}, and the video has {windows.num_frames} "
                f"frames at {fps:g} fps; leave it out, or make the video longer"
            )
        if frame <= frames[-1]:
            raise UserError(f"`prompts_at` must have rising times, got {one.name} after {before.name}")
        frames.append(frame)
        before = one
    for frame, end, one in zip(frames[1:], [*frames[2:], windows.num_frames], timed, strict=True):
        if not any(frame <= start < end for start in starts):
            used = ", ".join(f"{start}f" for start in starts[1:12])
            hint = (
                f"windows begin at {used}"
                if used
                else "the video is made in one piece: give a smaller window"
            )
            raise UserError(
                f"`prompts_at` {one.name} would have no effect before {end}f; {hint}; a text counts from "
                "the next one on"
            )
    return [[f"{frame}f", one.text] for frame, one in zip(frames[1:], timed, strict=True)]


def texts_in_force(prompts_at: Sequence[Sequence[str]] | None, windows: Windows) -> list[int]:
    """For each window the number of its text: 0 is the prompt, 1 the first of a checked request's `prompts_at`."""
    frames = [int(time.removesuffix("f")) for time, _ in prompts_at or ()]
    return [sum(frame <= one.first_made for frame in frames) for one in windows.all]
