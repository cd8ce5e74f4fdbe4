"""From cuts to spans: scenes lie between cuts; short ones are dropped, long ones are chopped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from ea_data.protocols import Cut, Lost, Span, Spans

Scene = tuple["Boundary", "Boundary"]


@dataclass(frozen=True, slots=True)
class Boundary:
    """Start or end of a scene. frame: its number at the mean rate; seconds: its exact time."""

    frame: int
    seconds: float


def chop(boundaries: Sequence[Boundary], fps: Fraction, min_seconds: float, max_seconds: float) -> list[Span]:
    """The spans between neighbouring boundaries, counted in frames as EasyAnimate V2's splitting script does.

    A scene under `min_seconds` is dropped. One over `max_seconds` is cut into pieces of int(max_seconds * fps)
    frames; the rest is kept if it is longer than `min_seconds`. fps: the mean rate.
    """
    rate = float(fps)
    piece = max(1, int(max_seconds * rate))
    spans: list[Span] = []
    for start, end in pairwise(boundaries):
        num_frames = end.frame - start.frame
        if num_frames < rate * min_seconds:
            continue
        if num_frames <= rate * max_seconds:
            spans.append(Span(start.seconds, end.seconds))
            continue
        cut = 0
        while cut + piece <= num_frames:
            spans.append(Span(_at(start, cut, rate), _at(start, cut + piece, rate)))
            cut += piece
        if num_frames - cut > rate * min_seconds:
            spans.append(Span(_at(start, cut, rate), end.seconds))
    return spans


def _at(start: Boundary, num_frames: int, rate: float) -> float:
    return start.seconds + num_frames / rate if num_frames else start.seconds


def check_seconds(min_seconds: float, max_seconds: float) -> None:
    """Raises ValueError for limits that cross."""
    if min_seconds > max_seconds:
        raise ValueError(f"`min_seconds` must be at most `max_seconds`, got {min_seconds} and {max_seconds}")


def spans_of(
    scenes: Sequence[Scene],
    cuts: Iterable[Cut],
    fps: Fraction,
    min_seconds: float,
    max_seconds: float,
    lost: Iterable[Lost] = (),
) -> Spans:
    """The spans of all scenes, with what is lost. scenes: (start, end) each. lost: what lies between them."""
    spans: list[Span] = []
    lost = list(lost)
    for scene in scenes:
        found = chop(scene, fps, min_seconds, max_seconds)
        edges = (scene[0].seconds, scene[1].seconds, float(1 / fps))
        lost += lost_between(found, *edges, "remainder too short" if found else "too short")
        spans += found
    longest = max((end.seconds - start.seconds for start, end in scenes), default=0.0)
    reason = (
        "" if spans else f"its longest scene is {longest:.2f} s long, and `min_seconds` is {min_seconds:g}"
    )
    in_order = sorted(lost, key=lambda one: one.start)
    return Spans(spans, cuts=cuts, longest_scene=longest, lost=in_order, reason=reason)


def lost_between(
    spans: Sequence[Span], start: float, end: float, frame_seconds: float, reason: str
) -> list[Lost]:
    """The parts from `start` to `end` that no span covers, if longer than half a frame. spans: in order of time."""
    edges = [start, *(edge for span in spans for edge in (span.start, span.end)), end]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return [Lost(first, last, reason) for first, last in gaps if last - first > frame_seconds / 2]
