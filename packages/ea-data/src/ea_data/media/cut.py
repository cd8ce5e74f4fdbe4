"""Writes a kept clip as a separate file: H.264 in MP4, upright, at a constant rate, without sound or metadata.

The same span of the same source gives the same bytes (with the same versions of FFmpeg and x264). A whole H.264 file
that needs no change is not encoded again: its packets are copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ea_data.media.containers import open_beneath, open_video
from ea_data.media.frames import open_window
from ea_data.media.probe import BadFile, file_errors
from ea_runtime.files.atomic import atomic_file
from ea_runtime.video.pictures import is_upright, open_picture, shown
from ea_runtime.video.x264 import x264_options

VERSION = "2"
#: Chroma formats that are kept; all others become 4:2:0.
_KEPT_FORMATS = ("yuv420p", "yuv422p", "yuv444p")
_PICTURES_AS_THEY_ARE = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
#: FFmpeg filters by the degrees that the file says to turn its frames counter-clockwise.
_TURNS = {90: ("transpose", "cclock"), 270: ("transpose", "clock")}
_LIMITED, _FULL = 1, 2  # FFmpeg's numbers of the colour ranges


@dataclass(frozen=True, slots=True)
class Written:
    """The written file. num_bytes: its size, to tell whether it is still complete."""

    width: int
    height: int
    num_frames: int
    num_bytes: int


def suffix_of(record: dict[str, Any]) -> str:
    """The suffix of a clip's file."""
    if not record["is_picture"]:
        return ".mp4"
    return _PICTURES_AS_THEY_ARE.get(record["codec"], ".png")


def write_clip(
    record: dict[str, Any], root: Path, target: Path, *, crf: int = 18, strict: bool = False
) -> Written:
    """Writes one clip; `target` appears whole or not at all.

    record: path, start, end, fps, rotation, is_picture, codec, is_variable_rate, is_whole. root: the folder above the
    source. crf: x264's quality, 0 to 51, lower is better.
    Raises BadFile if the source cannot be read.
    """
    path = Path(record["path"])
    with atomic_file(target) as temporary:
        if record["is_picture"]:
            size = _write_picture(path, root, temporary, record["codec"])
        elif _may_copy(record):
            size = _copy_packets(path, root, temporary)
        else:
            size = _encode(record, path, root, temporary, crf, strict)
        return Written(*size, temporary.stat().st_size)


def _may_copy(record: dict[str, Any]) -> bool:
    is_plain = not record["rotation"] and not record["is_variable_rate"] and record["codec"] == "h264"
    return is_plain and record["is_whole"] and not (record["width"] % 2 or record["height"] % 2)


def _write_picture(path: Path, root: Path, target: Path, codec: str) -> tuple[int, int, int]:
    """The file itself if it is of a common kind and upright; else its first frame, turned, transparency kept."""
    with file_errors(), open_beneath(path, root) as file, open_picture(file) as picture:
        if codec in _PICTURES_AS_THEY_ARE and is_upright(picture):
            size = picture.size
            file.seek(0)
            with target.open("wb") as out:
                shutil.copyfileobj(file, out)
        else:
            turned = shown(picture)
            size = turned.size
            form = {"jpeg": "JPEG", "webp": "WEBP"}.get(codec, "PNG")
            turned.save(target, form, **({} if form == "PNG" else {"quality": 95}))
    return *size, 1


def _copy_packets(path: Path, root: Path, target: Path) -> tuple[int, int, int]:
    import av

    with file_errors(), open_beneath(path, root) as file, open_video(file) as (source, stream):
        with _open_output(target) as out:
            copy = out.add_stream_from_template(stream)
            count = 0
            for packet in source.demux(stream):
                if packet.dts is None:
                    continue
                count += not packet.is_discard
                packet.stream = copy
                out.mux(packet)
        assert isinstance(stream, av.VideoStream)
        return stream.codec_context.width, stream.codec_context.height, count


def _open_output(target: Path) -> Any:
    import av

    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    return av.open(str(target), "w", format="mp4", container_options=options)


def _encode(
    record: dict[str, Any], path: Path, root: Path, target: Path, crf: int, strict: bool
) -> tuple[int, int, int]:
    from av.video.frame import PictureType

    fps = Fraction(record["fps_exact"])
    count = 0
    with open_window(path, root, record["start"], record["end"], float(fps), strict=strict) as window:
        frames = _even(window.decode(), record["rotation"])
        if record["is_variable_rate"]:
            frames = _constant_rate(frames, window.times, fps)
        with _open_output(target) as out:
            stream: Any = None
            for _, frame in frames:
                if stream is None:
                    stream = out.add_stream("libx264", rate=fps)
                    _set_up(stream, frame, crf)
                elif (frame.width, frame.height) != (stream.width, stream.height):
                    raise BadFile("its frames change their size within the clip")
                shown = _in_format(frame, stream.pix_fmt)
                shown.pts, shown.time_base = count, 1 / fps
                shown.pict_type = PictureType.NONE
                out.mux(stream.encode(shown))
                count += 1
            if stream is None:
                raise BadFile("it cannot be read: no frame of the clip can be decoded")
            out.mux(stream.encode(None))
        return stream.width, stream.height, count


def _set_up(stream: Any, frame: Any, crf: int) -> None:
    stream.width, stream.height = frame.width, frame.height
    name = frame.format.name
    stream.pix_fmt = name if name in _KEPT_FORMATS else "yuv420p"
    stream.options = x264_options(crf, "veryfast")
    codec = stream.codec_context
    codec.thread_count = 1  # x264's result depends on the number of threads; clips run side by side anyway
    if name == stream.pix_fmt or name.startswith("yuv"):
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


def _even(frames: Iterator[tuple[int, Any]], rotation: int) -> Iterator[tuple[int, Any]]:
    """Frames turned upright, without the last column or row of an odd side, which 4:2:0 cannot have."""
    graph: Any = None
    for number, frame in frames:
        is_odd = frame.width % 2 or frame.height % 2
        if not rotation and not is_odd:
            yield number, frame
            continue
        if graph is None:
            graph = _graph(frame, rotation, bool(is_odd))
        graph.push(frame)
        yield number, graph.pull()


def _graph(frame: Any, rotation: int, is_odd: bool) -> Any:
    from av.filter import Graph

    graph = Graph()
    size = {"width": frame.width, "height": frame.height}
    nodes = [graph.add_buffer(**size, format=frame.format.name, time_base=frame.time_base)]
    if rotation == 180:
        nodes += [graph.add("hflip"), graph.add("vflip")]
    elif rotation:
        nodes.append(graph.add(*_TURNS[rotation]))
    if is_odd:
        nodes.append(graph.add("crop", "trunc(iw/2)*2:trunc(ih/2)*2:0:0"))
    nodes.append(graph.add("buffersink"))
    for one, other in pairwise(nodes):
        one.link_to(other)
    graph.configure()
    return graph


def _constant_rate(
    frames: Iterator[tuple[int, Any]], times: np.ndarray, fps: Fraction
) -> Iterator[tuple[int, Any]]:
    """At each tick of the constant rate, the frame that is shown then: some come twice, some not at all."""
    ticks = np.arange(0, times[-1] + 0.5 / float(fps), 1 / float(fps))
    shown = np.maximum(np.searchsorted(times, ticks + 1e-6, side="right") - 1, 0)
    repeats = np.bincount(shown, minlength=len(times))
    for number, frame in frames:
        for _ in range(int(repeats[number])):
            yield number, frame
