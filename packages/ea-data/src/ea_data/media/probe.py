"""Probes a raw file for its true size, rate, length, codec, rotation, and the hash of its contents.

The packets are read, not decoded, so the number and times of frames are counted, not believed; one frame is decoded,
to check that there is a decoder and which way is up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ea_data.media.containers import open_beneath, open_video
from ea_data.protocols import VideoInfo
from ea_runtime.video.pictures import PICTURE_SUFFIXES, open_picture, to_rgb

VERSION = "2"
#: A rate is variable if more than this share of the intervals differs from the usual one ...
_VARIABLE_SHARE = 0.02
#: ... by more than this share of it (or one tick of the file's clock).
_INTERVAL_TOLERANCE = 0.1


class BadFile(ValueError):
    """A fault of a raw file, in one line that starts with "it"."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The times of a video's frames. seconds: float64 (N,), from the first frame on, ascending.

    pts: int64 (N,) in units of time_base, or counted frames if the file has no times (`is_counted`).
    """

    pts: np.ndarray
    time_base: Fraction
    is_counted: bool = False

    @classmethod
    def of(cls, packets: Iterable[Any], stream: Any, rate: Fraction) -> Timeline:
        """The timeline of a stream's packets. rate: of the frames, for raw streams and broken files without times."""
        pts = [packet.pts for packet in packets if packet.size and not packet.is_discard]
        if not pts:
            raise BadFile("it holds no frames")
        if stream.time_base and None not in pts and len(set(pts)) == len(pts):
            return cls(np.array(sorted(pts), dtype=np.int64), Fraction(stream.time_base))
        return cls(np.arange(len(pts), dtype=np.int64), 1 / rate, is_counted=True)

    @property
    def seconds(self) -> np.ndarray:
        return (self.pts - self.pts[0]) * float(self.time_base)

    def window(self, start: float, end: float, fps: float) -> range:
        """Numbers of the frames of a span, which starts with the frame at `start` and ends before that at `end`.

        Half a frame of tolerance: spans are seconds in floating point, and no frame may be lost or doubled.
        """
        half = 0.5 / fps if fps else 0.0
        first, last = np.searchsorted(self.seconds, (start - half, end - half), side="left")
        return range(int(first), int(last))


@dataclass(frozen=True, slots=True)
class Probed:
    """A file that can be used. content: sha256 of its bytes. timeline: None for a picture."""

    info: VideoInfo
    content: str
    timeline: Timeline | None = None


def probe(path: Path, root: Path, *, strict: bool = False, max_pixels: int = 1 << 26) -> Probed:
    """Looks at one file.

    strict: damage that a decoder could conceal is an error. max_pixels: larger frames are refused.
    Raises BadFile, one line, if it cannot be used.
    """
    with file_errors(), open_beneath(path, root) as file:
        content = hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
        if not file.tell():
            raise BadFile("it is empty")
        file.seek(0)
        if path.suffix.lower() in PICTURE_SUFFIXES:
            return Probed(_picture_info(path, file, max_pixels), content)
        info, timeline = _video_info(path, file, strict, max_pixels)
        return Probed(info, content, timeline)


def timeline_of(path: Path, root: Path) -> Timeline:
    """The timeline of a video alone. Raises BadFile."""
    with file_errors(), open_beneath(path, root) as file, open_video(file) as (container, stream):
        return _timeline(container, stream)


@contextmanager
def file_errors() -> Iterator[None]:
    """Turns decoders' errors on damaged files into a BadFile of one line, the same for the same fault."""
    try:
        yield
    except BadFile:
        raise
    # FFmpeg has several classes of errors, and Pillow's decoders raise anything
    except Exception as error:
        if _is_of_the_system(error):
            raise  # FFmpeg's own MemoryError is for absurd sizes in the file
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        reason = reason if reason.startswith("it ") else f"it cannot be read: {reason[:200]}"
        raise BadFile(reason) from error


def _is_of_the_system(error: Exception) -> bool:
    """True for a lack of memory or an error of the disk, which are no faults of the contents."""
    if type(error).__module__ != "builtins":
        return False
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and bool(error.errno))


def _picture_info(path: Path, file: BinaryIO, max_pixels: int) -> VideoInfo:
    with open_picture(file) as picture:
        _check_pixels(*picture.size, max_pixels)
        codec = (picture.format or "").lower()
        width, height = to_rgb(picture).size  # what cannot be shown is an error now
    return VideoInfo(path, width, height, Fraction(0), 0.0, 1, codec, is_picture=True)


def _video_info(path: Path, file: BinaryIO, strict: bool, max_pixels: int) -> tuple[VideoInfo, Timeline]:
    with open_video(file, strict) as (container, stream):
        _check_pixels(stream.codec_context.width, stream.codec_context.height, max_pixels)
        if stream.disposition & stream.disposition.attached_pic:
            raise BadFile("it holds sound and a cover picture, no video")
        timeline = _timeline(container, stream)
        fps = _rate(timeline, stream)
        container.seek(0)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise BadFile("it holds no frame that can be decoded")
        _check_pixels(frame.width, frame.height, max_pixels)
        count = len(timeline.pts)
        if count == 1:
            raise BadFile("it holds a single frame")
        if not fps:
            raise BadFile("its frames have no times")
        rotation = round(getattr(frame, "rotation", 0) / 90) * 90 % 360
        width, height = frame.width, frame.height
        if rotation % 180:
            width, height = height, width
        is_variable = _is_variable(timeline)
        # at a constant rate the number of frames counts, as clocks of milliseconds round each time
        last = int(timeline.pts[-1] - timeline.pts[0]) * timeline.time_base
        info = VideoInfo(
            path,
            width,
            height,
            fps,
            float(last + 1 / fps if is_variable else count / fps),
            count,
            stream.codec_context.name,
            rotation,
            is_variable,
        )
    return info, timeline


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise BadFile(f"its frames of {width}x{height} are larger than the {most:,} pixels allowed")


def _timeline(container: Any, stream: Any) -> Timeline:
    rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
    return Timeline.of(container.demux(stream), stream, rate)


def _rate(timeline: Timeline, stream: Any) -> Fraction:
    """The mean rate: the stream's own if it agrees with the times, which need not be exact."""
    stated = Fraction(stream.average_rate or 0)
    seconds = timeline.seconds[-1]
    if not seconds:
        return stated
    measured = (len(timeline.pts) - 1) / float(seconds)
    if stated and abs(float(stated) / measured - 1) < 0.01:
        return stated
    return Fraction(measured).limit_denominator(1001)


def _is_variable(timeline: Timeline) -> bool:
    intervals = np.diff(timeline.pts)
    usual = float(np.median(intervals))
    off = np.abs(intervals - usual) > max(_INTERVAL_TOLERANCE * usual, 1.01)
    return bool(off.mean() > _VARIABLE_SHARE)
