"""Probes a raw file for its true size, rate, length, codec, rotation, and the hash of its contents.

The packets are read, not decoded, so the number and times of frames are counted, not believed; the first frame and a
few key frames are decoded, to check that there is a decoder, which way is up, and that the size stays.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ea_data.media.bars import NO_BARS, BarFinder, Bars
from ea_data.media.containers import BadFile, open_beneath, open_video, rewind
from ea_data.media.look import TRANSFERS, Look, combing, pixel_aspect
from ea_data.media.timeline import Timeline, frames_in_order, key_frames, read_timeline
from ea_data.protocols import VideoInfo
from ea_runtime.video.pictures import PICTURE_SUFFIXES, open_picture, shown
from ea_runtime.video.streams import FrameDecoder, is_cover

VERSION = "4"
#: Seconds between two key frames that are looked at.
_LOOK_SECONDS = 1.0
#: Most key frames that are searched for combing, and how many are too few.
_MOST_COMBED_LOOKS, _FEW_LOOKS = 30, 4
#: Of a video with few key frames: numbers of the first frames that are looked at instead, and of those that are decoded
#: if these may have bars.
_FIRST_LOOKS, _BAR_LOOKS = range(2, 26, 4), range(26, 300, 12)


@dataclass(frozen=True, slots=True)
class Probed:
    """A file that can be used. content: sha256 of its bytes. timeline: None for a picture."""

    info: VideoInfo
    content: str
    timeline: Timeline | None = None


def probe(
    path: Path, root: Path, *, strict: bool = False, max_pixels: int = 1 << 26, crop_bars: bool = False
) -> Probed:
    """Looks at one file.

    strict: damage that a decoder could conceal is an error. max_pixels: larger frames are refused. crop_bars: its size
    is that without bars.
    Raises BadFile, one line, if it cannot be used.
    """
    with file_errors(), open_beneath(path, root) as file:
        content = hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
        if not file.tell():
            raise BadFile("it is empty")
        file.seek(0)
        if path.suffix.lower() in PICTURE_SUFFIXES:
            return Probed(_picture_info(path, file, max_pixels), content)
        info, timeline = _video_info(path, file, strict, max_pixels, crop_bars)
        return Probed(info, content, timeline)


def timeline_of(path: Path, root: Path) -> Timeline:
    """The timeline of a video alone. Raises BadFile."""
    with file_errors(), open_beneath(path, root) as file, open_video(file) as (container, stream):
        return read_timeline(container, stream)[0]


@contextmanager
def file_errors() -> Iterator[None]:
    """Turns decoders' errors on damaged files into a BadFile of one line, the same for the same fault."""
    try:
        yield
    except BadFile:
        raise
    # FFmpeg has several classes of errors, and Pillow's decoders raise anything
    except Exception as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(number, os.strerror(number)) from error  # FFmpeg's writing met it
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
        is_animation = bool(getattr(picture, "is_animated", False))
        image = shown(picture)  # what cannot be shown is an error now
        has_alpha = image.mode == "RGBA" and bool((np.asarray(image)[..., 3] < 255).any())
        bits = 8 * file.seek(0, os.SEEK_END)
    rest = (Fraction(0), 0.0, 1, codec)
    found = {"has_alpha": has_alpha, "is_animation": is_animation, "bits": bits}
    return VideoInfo(path, *image.size, *rest, is_picture=True, **found)


def _video_info(
    path: Path, file: BinaryIO, strict: bool, max_pixels: int, crop_bars: bool
) -> tuple[VideoInfo, Timeline]:
    with open_video(file, strict) as (container, stream):
        _check_pixels(stream.codec_context.width, stream.codec_context.height, max_pixels)
        timeline, frame = read_timeline(container, stream)
        _check_pixels(frame.width, frame.height, max_pixels)
        count = len(timeline.pts)
        if count == 1:
            raise BadFile("it holds a single frame")
        fps = timeline.rate(Fraction(stream.average_rate or 0))
        if not fps:
            raise BadFile("its frames have no times")
        rotation = round(getattr(frame, "rotation", 0) / 90) * 90 % 360
        seen = _look_over(container, stream, frame)
        aspect, transfer = pixel_aspect(stream), TRANSFERS.get(int(frame.color_trc), "")
        sides = (
            round(seen.bars.left * aspect),
            seen.bars.top,
            round(seen.bars.right * aspect),
            seen.bars.bottom,
        )
        bars = Bars(*sides)
        crop = bars.for_cropping() if crop_bars else NO_BARS
        look = Look(aspect, seen.is_interlaced, transfer, rotation, crop)
        list(look.show([frame]))  # what cannot be shown is an error now
        width, height = look.size(frame.width, frame.height)
        _check_pixels(width, height, max_pixels)
        if rotation % 180:
            width, height = height, width
        gaps = timeline.gap_seconds()
        is_variable = timeline.is_variable
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
            sample_aspect=str(look.sample_aspect),
            is_interlaced=seen.is_interlaced,
            combing=round(seen.combing, 4),
            transfer=look.transfer,
            bars=tuple(bars.turned(rotation).as_list()),
            is_cropped=bool(crop),
            has_alpha=seen.has_alpha,
            num_gaps=len(gaps),
            longest_gap=round(max(gaps, default=0.0), 6),
            num_streams=sum(not is_cover(one) for one in container.streams.video),
            stream=stream.index,
            bits=timeline.bits(range(count)),
        )
    return info, timeline


@dataclass(frozen=True, slots=True)
class _Seen:
    """The findings of a look at a few frames. combing: the largest share of combed pixels. bars: in coded pixels."""

    is_interlaced: bool
    combing: float
    bars: Bars
    has_alpha: bool


def _look_over(container: Any, stream: Any, first: Any) -> _Seen:
    """Looks at key frames. Raises BadFile if sizes differ.

    A video that says so is interlaced if a frame is combed; one that does not, if most are.
    """
    shares: list[float] = []
    says_so = bool(first.interlaced_frame)
    finder, decoder = BarFinder(), FrameDecoder(stream)
    for frame in key_frames(container, stream, _LOOK_SECONDS, decoder):
        _check_size(frame, first)
        says_so = says_so or bool(frame.interlaced_frame)
        if len(shares) < _MOST_COMBED_LOOKS:
            shares.append(combing(frame))
        finder.add(frame)
    has_alpha = decoder.saw_alpha
    if len(shares) < _FEW_LOOKS:
        # a long group of pictures: some of its first frames instead
        rewind(container)
        decoder = FrameDecoder(stream)
        for number, frame in enumerate(frames_in_order(container, stream, decoder)):
            if number in _FIRST_LOOKS or number in _BAR_LOOKS:
                _check_size(frame, first)
                finder.add(frame)
            if number in _FIRST_LOOKS:
                shares.append(combing(frame))
            elif number == _BAR_LOOKS.stop or (number == _BAR_LOOKS.start and not finder.may_have_bars):
                break
        has_alpha = has_alpha or decoder.saw_alpha
    num_combed = sum(share > 0 for share in shares)
    is_interlaced = num_combed > 0 if says_so else 2 * num_combed > len(shares) > 2
    return _Seen(is_interlaced, max(shares, default=0.0), finder.found(), has_alpha)


def _check_size(frame: Any, first: Any) -> None:
    if (frame.width, frame.height) != (first.width, first.height):
        sizes = f"from {first.width}x{first.height} to {frame.width}x{frame.height}"
        raise BadFile(f"its frames change their size, {sizes}; split it there")


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise BadFile(f"its frames of {width}x{height} are larger than the {most:,} pixels allowed")
