"""Filters that compare a number with limits: `threshold` and its ready-made forms.

All are pure functions of the record, so a change of limits decodes nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import Field, model_validator

from ea_data.options import Options
from ea_data.protocols import Decision
from ea_runtime.errors import UserError


def read_score(record: Mapping[str, Any], name: str, part: str = "") -> float:
    """A score's value, or a part of its detail. Raises UserError if it is missing or not a finite number."""
    clip = record.get("clip_id", "?")
    score = (record.get("scores") or {}).get(name)
    if score is None:
        raise UserError(f"clip {clip} has no score {name!r}; add [[score]] name = {name!r} to the profile")
    value = (score.get("detail") or {}).get(part) if part else score.get("value")
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        where = f"score {name!r}" + (f", part {part!r}," if part else "")
        raise UserError(f"clip {clip}: {where} must be a finite number, got {value!r}")
    return float(value)


class LimitOptions(Options):
    """score: name of the scorer. part: of its detail; empty: its value. min, max: the limits, at least one; a value
    equal to a limit is kept. exclusive: it is dropped."""

    score: str
    part: str = ""
    min: float | None = None
    max: float | None = None
    exclusive: bool = False

    @model_validator(mode="after")
    def _check_limits(self) -> LimitOptions:
        if self.min is None and self.max is None:
            raise ValueError("`min` or `max` must be given")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"`min` must be at most `max`, got {self.min} and {self.max}")
        return self


class MotionLimits(LimitOptions):
    """Limits of a motion score, for `dis` and `raft` in frame diagonals per second."""

    score: str = "dis"
    min: float | None = 0.005
    max: float | None = 0.3


class TextAreaLimits(LimitOptions):
    """max: the share of the frame that text may cover, 0 to 1."""

    score: str = "rapidocr"
    max: float | None = 0.01


class AestheticLimits(LimitOptions):
    """min: lowest aesthetic score that is kept, on a scale of about 1 to 10."""

    score: str = "clip-aesthetic"
    min: float | None = 4.0


class TechnicalLimits(LimitOptions):
    """min: lowest rating of the weakest measure that is kept, 0 to 1."""

    score: str = "technical"
    min: float | None = 0.3


class CompressionLimits(LimitOptions):
    """min: lowest rating of the weakest part that is kept, 0 to 1."""

    score: str = "compression"
    min: float | None = 0.3


class DurationLimits(LimitOptions):
    """min, max: seconds."""

    score: str = "probe"
    part: str = "seconds"
    min: float | None = 3.0
    max: float | None = 10.0


class LimitFilter:
    """Keeps clips whose number is within the limits. what: its name in reasons. videos_only: pictures are not
    judged."""

    version = "1"

    def __init__(self, options: LimitOptions, what: str = "", *, videos_only: bool = False) -> None:
        self.options = options
        self.videos_only = videos_only
        self.scores = (options.score,)
        self.what = what or " ".join(part for part in (options.score, options.part) if part)
        low, high = (">", "<") if options.exclusive else (">=", "<=")
        limits = [(low, options.min), (high, options.max)]
        self.threshold = " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)

    def __call__(self, record: dict[str, Any]) -> Decision:
        """Raises UserError if the score is missing."""
        options = self.options
        value = read_score(record, options.score, options.part)
        reaches = operator.gt if options.exclusive else operator.ge
        fault = ""
        if options.min is not None and not reaches(value, options.min):
            fault = f"under {options.min:g}{self._why(record)}"
        elif options.max is not None and not reaches(options.max, value):
            fault = f"over {options.max:g}"
        reason = f"{self.what} {value:.4g} is {fault or self.threshold}"
        return Decision(not fault, reason, self.threshold, self.what, value, options.min, options.max)

    def _why(self, record: dict[str, Any]) -> str:
        """The reason that the score itself names, such as " (sharpness 0.1)"."""
        detail = record["scores"][self.options.score].get("detail") or {}
        weakest = detail.get("weakest")
        if self.options.part or not isinstance(weakest, str) or weakest not in detail:
            return ""
        return f" ({weakest} {detail[weakest]:.3g})"


class SizeOptions(Options):
    """min_side: pixels of the shorter side. min_pixels: width times height. max_aspect: longer side over shorter."""

    score: str = "probe"
    min_side: int = Field(128, ge=0)
    min_pixels: int = Field(0, ge=0)
    max_aspect: float = Field(4.0, ge=1)


class SizeFilter:
    """Drops clips that are too small or too narrow."""

    version = "1"

    def __init__(self, options: SizeOptions) -> None:
        self.options = options
        self.scores = (options.score,)
        self.threshold = f"short side >= {options.min_side}, aspect <= {options.max_aspect:g}"
        if options.min_pixels:
            self.threshold += f", pixels >= {options.min_pixels}"

    def __call__(self, record: dict[str, Any]) -> Decision:
        """Raises UserError if the score is missing."""
        width, height = (int(read_score(record, self.options.score, name)) for name in ("width", "height"))
        options, (short, long) = self.options, sorted((width, height))
        fault = ""
        if short < options.min_side:
            fault = f"under {options.min_side} on a side"
        elif width * height < options.min_pixels:
            fault = f"under {options.min_pixels} pixels"
        elif long > options.max_aspect * short:
            fault = f"longer than {options.max_aspect:g} to 1"
        return Decision(not fault, f"{width}x{height} is {fault or 'large enough'}", self.threshold)


build_duration = partial(LimitFilter, what="seconds", videos_only=True)
build_motion = partial(LimitFilter, what="motion", videos_only=True)
build_text_area = partial(LimitFilter, what="text area")
build_aesthetic = partial(LimitFilter, what="aesthetic score")
build_technical = partial(LimitFilter, what="technical rating")
build_compression = partial(LimitFilter, what="compression rating")
