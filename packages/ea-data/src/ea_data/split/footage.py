"""A video's frames for splitters: decoded once, in order of time, shown as scorers see them, and small.

Shape legend: H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ea_data.media.containers import open_video
from ea_data.media.look import Look
from ea_data.media.timeline import Timeline, frames_in_order, read_timeline
from ea_data.protocols import VideoInfo
from ea_runtime.errors import UserError


@dataclass(frozen=True, slots=True)
class Footage:
    """An open video. fps: the usual rate. width, height: of its frames as they are coded. frames: pairs of (time from
    the first in units of the timeline's time base, frame)."""

    timeline: Timeline
    fps: Fraction
    width: int
    height: int
    frames: Iterator[tuple[int, Any]]


@contextmanager
def open_footage(path: Path) -> Iterator[Footage]:
    """A video as Footage. Raises UserError if the file cannot be read as a video, and so do its frames."""
    with ExitStack() as stack:
        with _reading(path):
            file = stack.enter_context(path.open("rb"))  # not its name: FFmpeg takes some names for protocols
            with open_video(file) as (container, stream):
                timeline, first = read_timeline(container, stream)
                fps = timeline.rate(Fraction(stream.average_rate or stream.guessed_rate or 25))
            file.seek(0)  # opened again: a raw stream cannot be sought
            container, stream = stack.enter_context(open_video(file))
        frames = _guarded(timeline.timed(frames_in_order(container, stream)), path)
        yield Footage(timeline, fps, first.width, first.height, frames)


def _guarded(frames: Iterator[tuple[int, Any]], path: Path) -> Iterator[tuple[int, Any]]:
    with _reading(path):
        yield from frames


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    # an av error is an OSError or a ValueError
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{str(path)!r} cannot be read as a video: {error}") from error


def look_of(info: VideoInfo) -> Look:
    """The look of a probed file that matters for cuts: neither the shape of its pixels nor its rotation."""
    return Look(is_interlaced=info.is_interlaced, transfer=info.transfer)


def small_frames(
    frames: Iterable[tuple[int, Any]], width: int, height: int, form: str, look: Look
) -> Iterator[tuple[int, np.ndarray]]:
    """(time, uint8 (height, width, 3)) of each frame, averaged over areas. form: "rgb24" or "bgr24"."""
    whole = replace(look, transfer="").show_numbered(frames)  # the fields are lines of the whole frame
    if look.transfer:
        # twice the size, as colours are brought to BT.709 pixel by pixel
        whole = replace(look, is_interlaced=False).show_numbered(_resized(whole, 2 * width, 2 * height, ""))
    for time, frame in _resized(whole, width, height, form):
        yield time, frame.to_ndarray()


def _resized(
    frames: Iterable[tuple[int, Any]], width: int, height: int, form: str
) -> Iterator[tuple[int, Any]]:
    """Frames of another size. form: "": as they are."""
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # kept: a new one for each frame costs more than all the rest
    for time, frame in frames:
        wanted = form or frame.format.name
        yield time, reformatter.reformat(frame, width, height, wanted, interpolation="AREA", threads=1)
