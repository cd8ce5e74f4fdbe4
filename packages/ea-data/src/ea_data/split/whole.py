"""The splitter `whole`: each file is one clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from ea_data.options import Options
from ea_data.protocols import Lost, Span, Spans, VideoInfo


class WholeOptions(Options):
    """min_seconds: shorter files give no clip. max_seconds: nor do longer ones; 0: no limit."""

    min_seconds: float = Field(0.0, ge=0)
    max_seconds: float = Field(0.0, ge=0)


class WholeSplitter:
    """One span from the first frame to the end."""

    version = "3"

    def __init__(self, options: WholeOptions) -> None:
        self.options = options

    def __call__(self, path: Path, info: VideoInfo) -> Sequence[Span]:
        """One span of the whole file in seconds, or none if its length is outside the limits."""
        if info.is_picture:
            return [Span(0.0, 0.0)]
        least, most, seconds = self.options.min_seconds, self.options.max_seconds, info.seconds
        if seconds < least:
            lost, limit = "too short", f"`min_seconds` is {least:g}"
        elif most and seconds > most:
            lost, limit = "too long", f"`max_seconds` is {most:g}"
        else:
            return Spans([Span(0.0, seconds)], longest_scene=seconds)
        reason = f"it is {seconds:.2f} s long, and {limit}"
        return Spans(longest_scene=seconds, lost=[Lost(0.0, seconds, lost)], reason=reason)
