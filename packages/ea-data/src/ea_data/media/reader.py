"""The reader of training frames: probes a file by its header, and decodes only a window of it.

Every function here may run in a supervised child (children/supervisor.py): arguments and results are plain values.
Frames are upright, uint8 RGB (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from ea_data.media.containers import open_beneath, open_video
from ea_data.media.frames import upright
from ea_data.media.kinds import Kind, kind_of
from ea_data.media.probe import BadFile, file_errors
from ea_runtime.video.pictures import Colour, open_picture, picture_size, rgb_frames
from ea_runtime.video.streams import FrameDecoder

#: A window from this frame on is sought; before it, decoding from the start is as fast.
SEEK_FROM = 24


class Probe(NamedTuple):
    """width, height: upright, in pixels. num_frames: as the container says, else counted."""

    width: int
    height: int
    num_frames: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A window of a file at the wanted size.

    start, num_frames, stride: frames start, start + stride, ... . height, width: of the result, in pixels.
    place: of the crop, (vertical, horizontal) from 0 to 1. says: (width, height) in the set's list, 0: none; a
    file of another size is refused. background: what shows where a picture is transparent. kind: of its entry; a
    file of the other kind is refused ("": none is; an animated picture may be either).
    """

    path: Path
    root: Path
    start: int
    num_frames: int
    height: int
    width: int
    stride: int = 1
    place: tuple[float, float] = (0.5, 0.5)
    says: tuple[int, int] = (0, 0)
    strict: bool = True
    background: Colour = (255, 255, 255)
    kind: Kind | Literal[""] = ""


def probe(path: Path, root: Path, with_size: bool = True) -> Probe:
    """Size and number of frames. Pictures are not decoded; of a video, the first frame is, for its size.

    with_size: False: only a video's header is read, and its size may be 0.
    Raises BadFile, one line.
    """
    with file_errors(), open_beneath(path, root) as file:
        return _probe_picture(file) if kind_of(file, path) == "image" else _probe_video(file, with_size)


def read(cut: Cut) -> np.ndarray:
    """The window, resized and cropped: uint8 (T, height, width, 3). Raises BadFile, one line.

    A file of the wanted size stays bit-exact.
    """
    wanted = range(cut.start, cut.start + cut.num_frames * cut.stride, cut.stride)
    out = np.empty((cut.num_frames, cut.height, cut.width, 3), dtype=np.uint8)
    count = 0
    with file_errors(), open_beneath(cut.path, cut.root) as file:
        kind = kind_of(file, cut.path)
        _check_kind(file, kind, cut.kind)
        if kind == "image":
            frames = _picture_frames(file, wanted, cut.background)
        else:
            frames = _video_frames(file, wanted, cut.strict, cut.background)
        for frame in frames:
            if count == 0:
                _check_size(frame, cut.says)
            out[count] = fit(frame, cut.height, cut.width, cut.place)
            count += 1
    if count < cut.num_frames:
        raise BadFile(f"it has no frame {wanted[count]}, as its header or its entry says")
    return out


def fit(frame: np.ndarray, height: int, width: int, place: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """A frame (H, W, 3) resized so that it just covers height x width, and cropped; unchanged if it fits.

    Bicubic, with a wider filter for shrinking, in one pass from the exact region.
    """
    from PIL import Image

    have_h, have_w = frame.shape[:2]
    if (have_h, have_w) == (height, width):
        return frame
    scale = min(have_h / height, have_w / width)
    box_h, box_w = scale * height, scale * width
    top, left = (have_h - box_h) * place[0], (have_w - box_w) * place[1]
    box = (left, top, min(left + box_w, have_w), min(top + box_h, have_h))
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _check_kind(file: BinaryIO, kind: Kind, says: str) -> None:
    """Raises BadFile if an entry's `type` contradicts the file, whose kind is `kind`."""
    if says in ("", kind) or (kind == "image" and _is_animated(file)):
        return
    what = "a video" if kind == "video" else "a picture of one frame"
    raise BadFile(f"it is {what}, but the `type` of its entry is {says!r}; write {kind!r} there")


def _is_animated(file: BinaryIO) -> bool:
    with open_picture(file) as picture:
        is_animated = getattr(picture, "n_frames", 1) > 1
    file.seek(0)
    return is_animated


def _check_size(frame: np.ndarray, says: tuple[int, int]) -> None:
    height, width = frame.shape[:2]
    if all(says) and (width, height) not in (says, says[::-1]):
        raise BadFile(f"it is {width}x{height}, but its entry says {says[0]}x{says[1]}; correct the entry")


def _probe_picture(file: BinaryIO) -> Probe:
    with open_picture(file) as picture:
        return Probe(*picture_size(picture), int(getattr(picture, "n_frames", 1)))


def _probe_video(file: BinaryIO, with_size: bool) -> Probe:
    with open_video(file) as (_, stream):
        count = stream.frames
    count = count or _packets(file)[0]
    if not count:
        raise BadFile("it holds no frames")
    if not with_size:
        return Probe(0, 0, count)
    file.seek(0)
    with open_video(file) as (container, stream):
        # only the first frame shows its rotation
        frame = next(_decoded(container, stream), None)
        if frame is None:
            raise BadFile("it holds no frames")
        is_on_its_side = round(getattr(frame, "rotation", 0) / 90) % 2 == 1
        width, height = (frame.height, frame.width) if is_on_its_side else (frame.width, frame.height)
        return Probe(width, height, count)


def _packets(file: BinaryIO) -> tuple[int, list[tuple[int, int]]]:
    """Number of frames, and (presentation, decoding) time of those that have both: read, not decoded."""
    count, times = 0, []
    file.seek(0)
    with open_video(file) as (container, stream):
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                count += 1
                if packet.pts is not None and packet.dts is not None:
                    times.append((packet.pts, packet.dts))
    return count, times


def _picture_frames(file: BinaryIO, wanted: range, background: Colour) -> Iterator[np.ndarray]:
    with open_picture(file) as picture:
        for frame in islice(rgb_frames(picture, background), wanted.start, wanted.stop, wanted.step):
            yield np.asarray(frame)


def _video_frames(file: BinaryIO, wanted: range, strict: bool, background: Colour) -> Iterator[np.ndarray]:
    from av.video.reformatter import VideoReformatter

    # kept: a new one for each frame costs five times all the rest
    reformatter = VideoReformatter()
    for point in (_seek_point(file, wanted.start), None):
        file.seek(0)
        with open_video(file, strict) as (container, stream):
            found = _decode_from(container, stream, point, background)
            if found is None:
                continue  # the seek failed: counted from the beginning
            skip = wanted.start if point is None else 0
            for frame in islice(found, skip, skip + wanted.stop - wanted.start, wanted.step):
                if strict and frame.is_corrupt:
                    raise BadFile("it cannot be read: a frame is damaged")
                pixels = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                yield upright(pixels, getattr(frame, "rotation", 0))
            return


def _seek_point(file: BinaryIO, start: int) -> tuple[int, int] | None:
    """(presentation time of frame `start`, time to seek to); None if decoding from the beginning is better."""
    if start < SEEK_FROM:
        return None
    count, times = _packets(file)
    if not start < len(times) == count:
        return None  # ambiguous times: raw streams, broken files
    shown = sorted(time for time, _ in times)[start]
    # containers seek by decoding time, which is earlier than presentation time
    return shown, shown - max(time - decoded for time, decoded in times)


def _decoded(container: Any, stream: Any, background: Colour = (255, 255, 255)) -> Iterator[Any]:
    decode = FrameDecoder(stream, background)
    for packet in container.demux(stream):
        yield from decode(packet)


def _decode_from(
    container: Any, stream: Any, point: tuple[int, int] | None, background: Colour
) -> Iterator[Any] | None:
    """Frames in order, from the point or the beginning; None if the seek misses the exact frame."""
    from av import FFmpegError

    if point is None:
        return _decoded(container, stream, background)
    shown, target = point
    try:
        container.seek(target, stream=stream, backward=True)
        decoded = _decoded(container, stream, background)
        frames = (frame for frame in decoded if frame.pts is None or frame.pts >= shown)
        first = next(frames, None)
    except FFmpegError:
        return None
    return chain([first], frames) if first is not None and first.pts == shown else None


def serve(task: Any) -> Any:
    """The target of a supervised child: reads a Cut, or probes a file by (path, root, with_size)."""
    return read(task) if isinstance(task, Cut) else probe(*task)
