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
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from ea_data.media.containers import BadFile, open_beneath, open_video
from ea_data.media.look import TRANSFERS, Look, combing, pixel_aspect
from ea_data.media.timeline import Timeline, frames_in_order, key_frames, read_timeline
from ea_data.protocols import VideoInfo
from ea_runtime.video.pictures import PICTURE_SUFFIXES, open_picture, to_rgb

VERSION = "4"
#: Seconds between two key frames that are looked at.
_LOOK_SECONDS = 1.0
#: Most key frames that are searched for combing, and how many are too few.
_MOST_COMBED_LOOKS, _FEW_LOOKS = 30, 4


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
        width, height = to_rgb(picture).size  # what cannot be shown is an error now
        bits = 8 * file.seek(0, os.SEEK_END)
    return VideoInfo(path, width, height, Fraction(0), 0.0, 1, codec, is_picture=True, bits=bits)


def _video_info(path: Path, file: BinaryIO, strict: bool, max_pixels: int) -> tuple[VideoInfo, Timeline]:
    with open_video(file, strict) as (container, stream):
        _check_pixels(stream.codec_context.width, stream.codec_context.height, max_pixels)
        if stream.disposition & stream.disposition.attached_pic:
            raise BadFile("it holds sound and a cover picture, no video")
        timeline, frame = read_timeline(container, stream)
        _check_pixels(frame.width, frame.height, max_pixels)
        count = len(timeline.pts)
        if count == 1:
            raise BadFile("it holds a single frame")
        fps = timeline.rate(Fraction(stream.average_rate or 0))
        if not fps:
            raise BadFile("its frames have no times")
        rotation = round(getattr(frame, "rotation", 0) / 90) * 90 % 360
        is_interlaced, combed = _look_over(container, stream, frame)
        look = Look(pixel_aspect(stream), is_interlaced, TRANSFERS.get(int(frame.color_trc), ""), rotation)
        list(look.show([frame]))  # what cannot be shown is an error now
        width, height = look.size(frame.width, frame.height)
        _check_pixels(width, height, max_pixels)
        if rotation % 180:
            width, height = height, width
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
            is_interlaced=is_interlaced,
            combing=round(combed, 4),
            transfer=look.transfer,
            bits=timeline.bits(range(count)),
        )
    return info, timeline


def _look_over(container: Any, stream: Any, first: Any) -> tuple[bool, float]:
    """(True if it is interlaced, largest share of combed pixels), from key frames. Raises BadFile if sizes differ.

    One that says so is interlaced if a frame is combed; one that does not, if most are.
    """
    shares = []
    says_so = bool(first.interlaced_frame)
    for frame in key_frames(container, stream, _LOOK_SECONDS):
        if (frame.width, frame.height) != (first.width, first.height):
            sizes = f"from {first.width}x{first.height} to {frame.width}x{frame.height}"
            raise BadFile(f"its frames change their size, {sizes}; split it there")
        says_so = says_so or bool(frame.interlaced_frame)
        if len(shares) < _MOST_COMBED_LOOKS:
            shares.append(combing(frame))
    if len(shares) < _FEW_LOOKS:
        # a long group of pictures: some of its first frames instead
        container.seek(0)
        shares += [combing(frame) for frame in islice(frames_in_order(container, stream), 2, 26, 4)]
    num_combed = sum(share > 0 for share in shares)
    is_interlaced = num_combed > 0 if says_so else 2 * num_combed > len(shares) > 2
    return is_interlaced, max(shares, default=0.0)


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise BadFile(f"its frames of {width}x{height} are larger than the {most:,} pixels allowed")
