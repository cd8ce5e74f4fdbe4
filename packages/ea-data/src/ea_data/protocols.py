"""Splitters, scorers, filters and captioners, as the pipeline calls them and plugin authors write them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The findings of a probe. width, height: upright and with square pixels. fps: mean rate, as a fraction.

    seconds: of the picture stream. num_frames: counted, or as the container says; 0: unknown. sample_aspect: width
    over height of its pixels, as a fraction. combing: largest share of combed pixels in a key frame. transfer: "pq",
    "hlg" (HDR) or "". bars: widths of dark bars at the left, top, right and bottom, in pixels of the upright picture;
    is_cropped: they are cut off, and width and height are those without. has_alpha: parts are transparent (shown on
    white). num_gaps: intervals of 1.5 usual ones or more between frames; longest_gap: in seconds. num_streams: of
    video, without covers; stream: number in the file of the one that is read. is_animation: a picture file with
    several pictures, of which the first is taken. bits: of its frames' packets, without sound and
    container; of a picture, of the file.
    """

    path: Path
    width: int
    height: int
    fps: Fraction
    seconds: float
    num_frames: int
    codec: str
    rotation: int = 0
    is_variable_rate: bool = False
    is_picture: bool = False
    sample_aspect: str = "1"
    is_interlaced: bool = False
    combing: float = 0.0
    transfer: str = ""
    bars: tuple[int, ...] = (0, 0, 0, 0)
    is_cropped: bool = False
    has_alpha: bool = False
    num_gaps: int = 0
    longest_gap: float = 0.0
    num_streams: int = 1
    stream: int = 0
    is_animation: bool = False
    bits: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """A clip within its source, in seconds: from `start`, up to but not including `end`."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """The frames that a scorer needs. The union over all scorers is decoded once.

    mode "fps": `value` frames per second; "stride": every int(fps / value)-th frame, counted from the first (at most
    num_frames - 1 apart, so there is a second one); "even": `value` frames spread evenly, at (i + offset) / n of
    the clip; "middle": the middle one, num_frames // 2; "none": no frame (the record is enough).
    max_side: longer sides are scaled down to it; 0: native size. colour: "rgb" or "gray".
    """

    mode: Literal["fps", "stride", "even", "middle", "none"]
    value: float = 1
    max_side: int = 0
    colour: Literal["rgb", "gray"] = "rgb"
    offset: float = 0.5


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of a request: uint8 (N, H, W, 3) or (N, H, W). seconds: their times within the clip."""

    pixels: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True, slots=True)
class Score:
    """One number about a clip. values: one for each frame or pair, if any. detail: for the report (boxes)."""

    value: float
    values: tuple[float, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """A filter's verdict. threshold: the limits in words ('>= 0.3'). reason: one line.

    score, value, minimum, maximum: the same as numbers, for the report: the score's name, its value, and the limits
    (None: no such limit). A filter without a single score leaves them out.
    """

    is_kept: bool
    reason: str
    threshold: str = ""
    score: str = ""
    value: float | None = None
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """A change of shots, in seconds. A hard cut: start == end, the new shot's first frame. A gradual one: from its
    first changed frame up to the new shot's first whole one."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Lost:
    """Seconds of a file that are in no clip. reason: a few words, the same for all of a kind ("too short")."""

    start: float
    end: float
    reason: str


class Spans(list[Span]):
    """The spans of one file, and what a splitter found: `cuts`, `longest_scene` in seconds, `lost` in order of time.

    reason: one line that starts with "its" or "it"; why there is no span.
    """

    def __init__(
        self,
        spans: Iterable[Span] = (),
        *,
        cuts: Iterable[Cut] = (),
        longest_scene: float = 0.0,
        lost: Iterable[Lost] = (),
        reason: str = "",
    ) -> None:
        super().__init__(spans)
        self.cuts, self.longest_scene = tuple(cuts), longest_scene
        self.lost, self.reason = tuple(lost), reason


class Splitter(Protocol):
    """Cuts one video. `version` changes whenever its answers may. It may return Spans to tell its cuts,
    what it lost, and why there are no spans. A slow one has an attribute `seconds_a_frame`: the time limit of a file
    grows by it."""

    version: str

    def __call__(self, path: Path, info: VideoInfo) -> Sequence[Span]: ...


class Scorer(Protocol):
    """Scores one clip. `needs`: its frames; `version` changes whenever its answers may; `cost`: rough milliseconds per
    clip, so that cheap scorers run first. One with an attribute `videos_only = True` does not score pictures, and
    filters that read its score do not judge them."""

    version: str
    needs: FrameRequest
    cost: float

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score: ...


class Filter(Protocol):
    """A pure function of a clip's record. `scores`: the scores it reads; a missing one is an error, never a pass.
    One with an attribute `videos_only = True` does not judge pictures."""

    version: str
    scores: tuple[str, ...]

    def __call__(self, record: dict[str, Any]) -> Decision: ...


class SetFilter(Protocol):
    """A verdict that needs the other clips too, such as "a duplicate". It runs after every `Filter`, over the records
    that are still kept, sorted by `order`, so it depends on the set alone, never on which worker was faster. One with a
    method `work_in(folder)` is given the folder for its temporary files."""

    version: str
    scores: tuple[str, ...]

    def order(self, record: dict[str, Any]) -> tuple[Any, ...]:
        """The sort key; ends in clip_id, so that no two are equal."""
        ...

    def judge(self, records: Iterable[dict[str, Any]]) -> Iterator[Decision]:
        """One decision for each record, in order; `records` is read once, one at a time."""
        ...


@dataclass(frozen=True, slots=True)
class Caption:
    """text: the caption. model: its author. prompt_hash: sha256 of the prompt, empty without one."""

    text: str
    model: str
    prompt_hash: str = ""


class Captioner(Protocol):
    """Describes one clip. `needs`: its frames. One that reads other files than the clip's has a method
    `reads(record) -> str`, a hash of their contents: if it changes, the clip is described again."""

    version: str
    needs: FrameRequest

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Caption: ...
