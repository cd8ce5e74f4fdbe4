"""Writes a kept clip as a separate file: H.264 in MP4, upright, at a constant rate, without sound or metadata.

At a constant rate, each frame is shown from the tick nearest to its time until that of the next frame; of two at one
tick, the later.

The same span of the same source gives the same bytes (with the same versions of FFmpeg and x264). A whole H.264 file
that needs no change is not encoded again: its packets are copied. Whatever is written is decoded once against the
frames that it is to hold; copied packets that fail that are encoded instead.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ea_data.media.containers import BadFile, open_beneath, open_video
from ea_data.media.frames import Window, open_window
from ea_data.media.look import Look
from ea_data.media.probe import file_errors
from ea_data.media.proof import Proof, mark, prove, prove_picture
from ea_data.media.target import Target, frame_ticks, time_ticks
from ea_data.media.timeline import place_of
from ea_runtime.files.atomic import atomic_file
from ea_runtime.video.pictures import is_upright, open_picture, picture_size, shown
from ea_runtime.video.x264 import x264_options

VERSION = "4"
#: Chroma formats that are kept; all others become 4:2:0.
_KEPT_FORMATS = ("yuv420p", "yuv422p", "yuv444p")
_PICTURES_AS_THEY_ARE = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
_AS_IT_IS = Target()
_LIMITED, _FULL = 1, 2  # FFmpeg's numbers of the colour ranges


@dataclass(frozen=True, slots=True)
class Written:
    """The written file. fps: its rate, a fraction in text; "0" for a picture. num_frames, luma_error: of its proof.
    num_bytes, checksum: of the file, see `measure`."""

    width: int
    height: int
    fps: str
    num_frames: int
    luma_error: float
    num_bytes: int
    checksum: int


def suffix_of(record: dict[str, Any]) -> str:
    """The suffix of a clip's file."""
    if not record["is_picture"]:
        return ".mp4"
    return _PICTURES_AS_THEY_ARE.get(record["codec"], ".png")


def write_clip(
    record: dict[str, Any],
    root: Path,
    target: Path,
    *,
    crf: int = 18,
    strict: bool = False,
    form: Target = _AS_IT_IS,
) -> Written:
    """Writes one clip; `target` appears whole or not at all.

    record: a clip's, with its path. root: the folder above the source. crf: x264's quality, 0 to 51, lower is better.
    form: its rate and size. Raises BadFile if the source cannot be read, or what was written does not hold its frames.
    """
    path = Path(record["path"])
    with atomic_file(target) as temporary:
        if record["is_picture"]:
            size = _write_picture(path, root, temporary, record["codec"], form)
            rate, proof = Fraction(0), prove_picture(temporary, size)
        else:
            rate = form.fps or Fraction(record["fps_exact"])
            written = _copied(record, path, root, temporary, strict) if _may_copy(record, form) else None
            size, proof = written or _encoded(record, path, root, temporary, crf, strict, form)
        return Written(*size, str(rate), proof.num_frames, proof.luma_error, *measure(temporary))


def measure(path: Path) -> tuple[int, int]:
    """(bytes, CRC-32) of a file, to tell whether it is still as it was written."""
    checksum = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
    return size, checksum


def _may_copy(record: dict[str, Any], form: Target) -> bool:
    if not form.keeps(Fraction(record["fps_exact"]), record["width"], record["height"]):
        return False
    is_plain = not record["rotation"] and not record["is_variable_rate"] and record["codec"] == "h264"
    is_even = not (record["width"] % 2 or record["height"] % 2)
    is_shown_as_coded = is_plain and is_even and Look.of(record).is_plain
    return is_shown_as_coded and record["is_whole"] and not record["is_counted"]


def _write_picture(path: Path, root: Path, target: Path, codec: str, form: Target) -> tuple[int, int]:
    """The file itself if it is of a common kind, upright, of the right size and no animation; else its first frame,
    turned and scaled, transparency kept."""
    from PIL import Image, ImageOps

    with file_errors(), open_beneath(path, root) as file, open_picture(file) as picture:
        size = form.size(*picture_size(picture))
        is_still = not getattr(picture, "is_animated", False)
        is_kept = codec in _PICTURES_AS_THEY_ARE and is_upright(picture) and is_still
        if is_kept and size == picture.size:
            file.seek(0)
            with target.open("wb") as out:
                shutil.copyfileobj(file, out)
        else:
            turned = shown(picture)
            if size != turned.size:
                turned = ImageOps.fit(turned, size, Image.Resampling.BICUBIC)
            kind = {"jpeg": "JPEG", "webp": "WEBP"}.get(codec, "PNG")
            turned.save(target, kind, **({} if kind == "PNG" else {"quality": 95}))
    return size


def _copied(
    record: dict[str, Any], path: Path, root: Path, target: Path, strict: bool
) -> tuple[tuple[int, int], Proof] | None:
    """Copies a file's packets; None if they do not decode to the clip's frames."""
    fps = Fraction(record["fps_exact"])
    with open_window(path, root, place_of(record), float(fps), strict=strict) as window:
        marks = [mark(frame) for frame in _complete(window)]
    try:
        with file_errors():
            return _copy_packets(path, root, target, len(marks)), prove(target, marks, fps)
    except BadFile:
        return None


def _copy_packets(path: Path, root: Path, target: Path, num_frames: int) -> tuple[int, int]:
    with open_beneath(path, root) as file, open_video(file) as (source, stream):
        times = [(packet.pts, packet.dts) for packet in source.demux(stream) if packet.size]
        if len(times) != num_frames:
            raise BadFile("it holds packets without a frame")
        decoding = iter(_decoding_times(times))
        source.seek(0)
        with _open_output(target) as out:
            copy = out.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.size:
                    packet.dts = next(decoding, None)
                    packet.stream = copy
                    out.mux(packet)
        return stream.codec_context.width, stream.codec_context.height


def _decoding_times(times: list[tuple[int, int | None]]) -> list[int | None]:
    """The packets' decoding times. Where some are missing, as in Matroska, all are made from the presentation times."""
    if all(dts is not None for _, dts in times):
        return [dts for _, dts in times]
    shown = sorted(pts for pts, _ in times)
    late = max(one - pts for one, (pts, _) in zip(shown, times, strict=True))
    return [time - late for time in shown]


def _open_output(target: Path) -> Any:
    import av

    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    return av.open(str(target.absolute()), "w", format="mp4", container_options=options)


def _encoded(
    record: dict[str, Any], path: Path, root: Path, target: Path, crf: int, strict: bool, form: Target
) -> tuple[tuple[int, int], Proof]:
    from av.video.frame import PictureType

    fps = Fraction(record["fps_exact"])
    rate = form.fps or fps
    marks: list[np.ndarray] = []
    with open_window(path, root, place_of(record), float(fps), strict=strict) as window:
        frames = Look.of(record).show(_complete(window), is_even=True, target=form)
        is_even = not record["is_variable_rate"]
        ticks = frame_ticks(len(window.times), fps, rate) if is_even else time_ticks(window.times, fps, rate)
        repeats = np.diff(ticks).tolist()
        with _open_output(target) as out:
            stream: Any = None
            for frame, times in zip(frames, repeats, strict=False):
                if stream is None:
                    stream = out.add_stream("libx264", rate=rate)
                    _set_up(stream, frame, crf)
                elif (frame.width, frame.height) != (stream.width, stream.height):
                    raise BadFile("its frames change their size within the clip")
                shown = _in_format(frame, stream.pix_fmt)
                seen = mark(shown)
                for _ in range(times):
                    shown.pts, shown.time_base = len(marks), 1 / rate
                    shown.pict_type = PictureType.NONE
                    out.mux(stream.encode(shown))
                    marks.append(seen)
            out.mux(stream.encode(None))
        size = stream.width, stream.height
    return size, prove(target, marks, rate)


def _complete(window: Window) -> Iterator[Any]:
    """The frames of a clip, every one and in order. Raises BadFile at one that cannot be decoded."""
    wanted = 0
    for number, frame in window.decode():
        if number != wanted:
            break
        yield frame
        wanted += 1
    if wanted < len(window.times):
        raise BadFile(f"it cannot be read: frame {wanted} of the clip cannot be decoded")


def _set_up(stream: Any, frame: Any, crf: int) -> None:
    stream.width, stream.height = frame.width, frame.height
    name = frame.format.name
    stream.pix_fmt = name if name in _KEPT_FORMATS else "yuv420p"
    stream.options = x264_options(crf, "veryfast")
    codec = stream.codec_context
    codec.thread_count = 1  # x264's result depends on the number of threads; clips run side by side anyway
    if name.startswith("yuv"):
        codec.colorspace, codec.color_range = int(frame.colorspace), int(frame.color_range)
        codec.color_primaries, codec.color_trc = int(frame.color_primaries), int(frame.color_trc)
    if name != stream.pix_fmt:
        codec.color_range = _LIMITED


def _in_format(frame: Any, form: str) -> Any:
    if frame.format.name == form:
        return frame
    is_full = frame.format.name.startswith("yuvj") or int(frame.color_range) == _FULL
    have = _FULL if is_full else _LIMITED
    return frame.reformat(format=form, src_color_range=have, dst_color_range=_LIMITED)
