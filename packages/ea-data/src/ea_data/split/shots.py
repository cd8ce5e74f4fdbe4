"""From a detector's cuts to the spans of shots; the base of `adaptive` and `transnetv2`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from pydantic import Field, model_validator

from ea_data.media.look import Look
from ea_data.options import Options
from ea_data.protocols import Cut, Lost, Span, VideoInfo
from ea_data.split.chop import Boundary, Scene, check_seconds, spans_of
from ea_data.split.footage import Footage, look_of, open_footage


class ShotOptions(Options):
    """min_seconds, max_seconds: shorter scenes are dropped, longer ones chopped."""

    min_seconds: float = Field(3.0, ge=0)
    max_seconds: float = Field(10.0, gt=0)

    @model_validator(mode="after")
    def _check_seconds(self) -> ShotOptions:
        check_seconds(self.min_seconds, self.max_seconds)
        return self


class ShotSplitter(ABC):
    """Spans of the shots between cuts, which `find_cuts` finds. A pause in the times ends a shot too.

    margin: frames that are left out before and after a gradual cut.
    """

    version = "1"
    margin = 0

    def __init__(self, options: ShotOptions) -> None:
        self.options = options

    @abstractmethod
    def find_cuts(self, footage: Footage, look: Look) -> Iterable[Cut]:
        """The cuts of a video in order of time, in seconds from its first frame."""

    def __call__(self, path: Path, info: VideoInfo) -> Sequence[Span]:
        """Spans in seconds from the first frame. Without a cut, the whole video is one scene.

        Raises UserError if the file cannot be read as a video.
        """
        if info.is_picture:
            return [Span(0.0, 0.0)]
        with open_footage(path) as footage:
            cuts = list(self.find_cuts(footage, look_of(info)))
        seconds, fps = footage.timeline.seconds, footage.fps
        scenes: list[Scene] = []
        lost: list[Lost] = []
        for first, after in pairwise([0, *footage.timeline.pauses(), len(seconds)]):
            ends = (float(seconds[first]), float(seconds[after - 1]) + float(1 / fps))
            found, left_out = scenes_between(ends, cuts, fps, self.margin)
            scenes += found
            lost += left_out
        return spans_of(scenes, cuts, fps, self.options.min_seconds, self.options.max_seconds, lost)


def scenes_between(
    ends: tuple[float, float], cuts: Iterable[Cut], fps: Fraction, margin: int
) -> tuple[list[Scene], list[Lost]]:
    """The scenes of a stretch from ends[0] to ends[1] seconds, and its transitions with their margins."""
    begin, end = ends
    more = margin / float(fps)
    scenes: list[Scene] = []
    lost: list[Lost] = []
    for cut in cuts:
        wide = more if cut.end > cut.start else 0.0
        last, first = max(cut.start - wide, ends[0]), min(cut.end + wide, end)
        if last > first:
            continue  # of another stretch
        if last > begin:
            scenes.append((_boundary(begin, fps), _boundary(last, fps)))
        if first > max(last, begin):
            lost.append(Lost(max(last, begin), first, "transition"))
        begin = max(begin, first)
    if end > begin:
        scenes.append((_boundary(begin, fps), _boundary(end, fps)))
    return scenes, lost


def _boundary(seconds: float, fps: Fraction) -> Boundary:
    return Boundary(round(seconds * float(fps)), seconds)
