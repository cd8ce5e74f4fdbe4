"""Filters that compare a number with limits: `threshold` and its ready-made forms.

All are pure functions of the record, so new limits decode nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from ea_data.options import Options
from ea_data.protocols import Decision
from ea_runtime.errors import UserError


def read_score(record: Mapping[str, Any], name: str, part: str = "") -> float:
    """A score's value, or a part of its detail. Raises UserError where it is missing or no number: never a pass."""
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
    """score: which scorer's. part: of its detail; empty: its value. min, max: the limits, kept when equal to one;
    exclusive: dropped when equal. At least one is needed."""

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


class MotionOptions(LimitOptions):
    """Limits of a motion score; those of `dis` and `raft` are in frame diagonals a second."""

    score: str = "dis"
    min: float | None = 0.005
    max: float | None = 0.3


class TextAreaOptions(LimitOptions):
    """max: the share of the frame, 0 to 1, that text may cover."""

    score: str = "rapidocr"
    max: float | None = 0.01


class AestheticOptions(LimitOptions):
    """min: the aesthetic score, about 1 to 10, that a clip must have."""

    score: str = "clip-aesthetic"
    min: float | None = 4.0


class TechnicalOptions(LimitOptions):
    """min: the rating, 0 to 1, that the weakest of the measures must have."""

    score: str = "technical"
    min: float | None = 0.3


class DurationOptions(LimitOptions):
    """min, max: seconds."""

    score: str = "probe"
    part: str = "seconds"
    min: float | None = 3.0
    max: float | None = 10.0


class LimitFilter:
    """Keeps a clip whose number lies within the limits. what: the number's name in reasons. videos_only: pictures are
    not judged."""

    version = "1"

    def __init__(self, options: LimitOptions, what: str = "", *, videos_only: bool = False) -> None:
        self.options = options
        self.videos_only = videos_only
        self.scores = (options.score,)
        self.what = what or " ".join(part for part in (options.score, options.part) if part)
        low, high = (">", "<") if options.exclusive else (">=", "<=")
        limits = [(low, options.min), (high, options.max)]
        self.threshold = " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)

    def missing(self) -> list[str]:
        return []

    def __call__(self, record: dict[str, Any]) -> Decision:
        """Raises UserError where the score is missing."""
        options = self.options
        value = read_score(record, options.score, options.part)
        told = f"{self.what} {value:.4g}"
        is_kept, reason = True, f"{told} is {self.threshold}"
        if options.min is not None and (value < options.min or (options.exclusive and value == options.min)):
            is_kept, reason = False, f"{told} is under {options.min:g}{self._why(record)}"
        elif options.max is not None and (
            value > options.max or (options.exclusive and value == options.max)
        ):
            is_kept, reason = False, f"{told} is over {options.max:g}"
        return Decision(is_kept, reason, self.threshold, self.what, value, options.min, options.max)

    def _why(self, record: dict[str, Any]) -> str:
        """What the score itself names as the reason, such as " (sharpness 0.1)"."""
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

    def missing(self) -> list[str]:
        return []

    def __call__(self, record: dict[str, Any]) -> Decision:
        """Raises UserError where the score is missing."""
        width, height = (int(read_score(record, self.options.score, name)) for name in ("width", "height"))
        short, long = sorted((width, height))
        size = f"{width}x{height}"
        if short < self.options.min_side:
            return Decision(False, f"{size} is under {self.options.min_side} on a side", self.threshold)
        if width * height < self.options.min_pixels:
            return Decision(False, f"{size} is under {self.options.min_pixels} pixels", self.threshold)
        if long > self.options.max_aspect * short:
            return Decision(False, f"{size} is longer than {self.options.max_aspect:g} to 1", self.threshold)
        return Decision(True, f"{size} is large enough", self.threshold)


def build_threshold(options: LimitOptions) -> LimitFilter:
    return LimitFilter(options)


def build_duration(options: DurationOptions) -> LimitFilter:
    return LimitFilter(options, "seconds", videos_only=True)


def build_motion(options: MotionOptions) -> LimitFilter:
    return LimitFilter(options, "motion", videos_only=True)


def build_text_area(options: TextAreaOptions) -> LimitFilter:
    return LimitFilter(options, "text area")


def build_aesthetic(options: AestheticOptions) -> LimitFilter:
    return LimitFilter(options, "aesthetic score")


def build_technical(options: TechnicalOptions) -> LimitFilter:
    return LimitFilter(options, "technical rating")


def build_size(options: SizeOptions) -> SizeFilter:
    return SizeFilter(options)
