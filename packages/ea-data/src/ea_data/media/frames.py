"""Decodes a clip once for all that need frames of it.

The packets of a window of the source are read, and their times say which frames there are; then each packet is decoded
once, and each frame is converted once for each requested size and colour.

Shape legend: N frames, H height, W width (upright).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ea_data.media.containers import open_beneath, open_video
from ea_data.media.probe import BadFile, Timeline, file_errors
from ea_data.protocols import FrameRequest, Frames
from ea_runtime.video.pictures import open_picture, to_rgb

#: Part of the version of everything computed from frames: a change here may change every score.
VERSION = "2"


class Window:
    """The packets of one clip. times: float64 (N,), seconds from the clip's first frame."""

    def __init__(
        self, packets: list[Any], timeline: Timeline, wanted: range, stream: Any, strict: bool
    ) -> None:
        self._packets, self._stream, self._strict = packets, stream, strict
        self._numbers = {int(timeline.pts[number]): number - wanted.start for number in wanted}
        self._is_counted = timeline.is_counted
        seconds = timeline.seconds[wanted.start : wanted.stop]
        self.times = seconds - seconds[0]

    def decode(self) -> Iterator[tuple[int, Any]]:
        """(number within the clip, frame) in order of time. Raises decoding errors, and BadFile for a damaged frame
        (strict only)."""
        counted = 0
        left = len(self._numbers)
        for frame in self._frames():
            number = self._numbers.get(counted if self._is_counted else frame.pts)
            counted += 1
            if number is None:
                continue
            if self._strict and frame.is_corrupt:
                raise BadFile("it cannot be read: a frame is damaged")
            yield number, frame
            left -= 1
            if not left:
                return

    def _frames(self) -> Iterator[Any]:
        for packet in self._packets:
            yield from packet.decode()
        yield from self._stream.decode(None)


@contextmanager
def open_window(
    path: Path, root: Path, start: float, end: float, fps: float, *, strict: bool = False
) -> Iterator[Window]:
    """The frames of a span: seconds from the file's first frame. Raises BadFile if there are none."""
    with file_errors(), open_beneath(path, root) as file, open_video(file, strict) as (container, stream):
        packets, timeline, wanted = _read_packets(container, stream, start, end, fps)
        if not wanted:
            raise BadFile(f"it holds no frame between {start:g} s and {end:g} s")
        yield Window(packets, timeline, wanted, stream, strict)


def read_frames(
    path: Path,
    root: Path,
    start: float,
    end: float,
    fps: float,
    requests: Iterable[FrameRequest],
    *,
    strict: bool = False,
) -> dict[FrameRequest, Frames]:
    """The frames of each request, from one pass of decoding.

    start, end: seconds from the file's first frame; fps: the file's mean rate, 0 for a picture.
    Raises BadFile, one line, even if a single requested frame cannot be decoded.
    """
    requests = list(dict.fromkeys(requests))
    if not fps:
        with file_errors():
            return _read_picture(path, root, requests)
    with open_window(path, root, start, end, fps, strict=strict) as window:
        wanted = {request: select(request, window.times, fps) for request in requests}
        pixels: dict[tuple[int, str, int], np.ndarray] = {}  # (max_side, colour, number)
        forms: dict[int, set[tuple[int, str]]] = {}
        for request, numbers in wanted.items():
            for number in numbers:
                forms.setdefault(int(number), set()).add((request.max_side, request.colour))
        convert = Converter()
        last = max(forms, default=-1)
        if forms:
            for number, frame in window.decode():
                for form in sorted(forms.get(number, ())):
                    pixels[(*form, number)] = convert(frame, *form)
                if number >= last:
                    break
        return {
            request: Frames(_stack(request, numbers, pixels), window.times[numbers])
            for request, numbers in wanted.items()
        }


def select(request: FrameRequest, times: np.ndarray, fps: float) -> np.ndarray:
    """Numbers of the requested frames: int64, ascending, each once.

    times: seconds of the clip's frames, from its first.
    """
    count = len(times)
    if request.mode == "none":
        numbers = np.zeros(0, dtype=np.int64)
    elif request.mode == "middle":
        numbers = np.array([count // 2])
    elif request.mode == "even":
        n = int(request.value)
        numbers = np.floor((np.arange(n) + request.offset) / n * count)
    elif request.mode == "stride":
        numbers = np.arange(0, count, max(1, min(int(fps / request.value), count - 1)))
    else:
        wanted = np.arange(0, times[-1] + 0.5 / fps, 1 / request.value)
        right = np.clip(np.searchsorted(times, wanted), 1, max(count - 1, 1))
        left = right - 1
        is_left = wanted - times[left] <= times[np.minimum(right, count - 1)] - wanted
        numbers = np.where(is_left, left, right)
    return np.unique(np.clip(numbers, 0, count - 1).astype(np.int64))


class Converter:
    """Converts frames of FFmpeg to upright arrays: uint8 (H, W, 3) or (H, W)."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, str], tuple[Any, int, int]] = {}

    def __call__(self, frame: Any, max_side: int, colour: str) -> np.ndarray:
        """The longer side is scaled down to max_side; 0: native size. All have the size of the first."""
        made = self._made.get((max_side, colour))
        if made is None:
            from av.video.reformatter import VideoReformatter

            # kept: a new one for each frame costs more than all the rest
            made = (VideoReformatter(), *_scaled(frame.width, frame.height, max_side))
            self._made[max_side, colour] = made
        reformatter, width, height = made
        form = "rgb24" if colour == "rgb" else "gray"
        picture = reformatter.reformat(frame, width, height, form, interpolation="AREA", threads=1)
        return upright(picture.to_ndarray(), getattr(frame, "rotation", 0))


def upright(pixels: np.ndarray, rotation: float) -> np.ndarray:
    """Turned counter-clockwise by `rotation` degrees, as phones record it; contiguous."""
    turns = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _scaled(width: int, height: int, max_side: int) -> tuple[int, int]:
    scale = max_side / max(width, height) if max_side else 1.0
    if scale >= 1:
        return width, height
    return max(1, round(width * scale)), max(1, round(height * scale))


def _stack(
    request: FrameRequest, numbers: np.ndarray, pixels: dict[tuple[int, str, int], np.ndarray]
) -> np.ndarray:
    if not len(numbers):
        return np.zeros((0, 0, 0, 3) if request.colour == "rgb" else (0, 0, 0), dtype=np.uint8)
    try:
        return np.stack([pixels[request.max_side, request.colour, int(number)] for number in numbers])
    except KeyError as error:
        number = error.args[0][-1]
        raise BadFile(f"it cannot be read: frame {number} of the clip cannot be decoded") from None


def _read_picture(path: Path, root: Path, requests: list[FrameRequest]) -> dict[FrameRequest, Frames]:
    from PIL import Image

    with open_beneath(path, root) as file, open_picture(file) as picture:
        whole = to_rgb(picture)
    found = {}
    for request in requests:
        if request.mode == "none":
            found[request] = Frames(_stack(request, np.zeros(0, np.int64), {}), np.zeros(0))
            continue
        size = _scaled(*whole.size, request.max_side)
        shown = whole if size == whole.size else whole.resize(size, Image.Resampling.BOX)
        array = np.asarray(shown if request.colour == "rgb" else shown.convert("L"))
        found[request] = Frames(array[None].copy(), np.zeros(1))
    return found


def _read_packets(
    container: Any, stream: Any, start: float, end: float, fps: float
) -> tuple[list[Any], Timeline, range]:
    """The packets of the span's frames (and of those they refer to), and which frames those are."""
    origin = _first_pts(container, stream)
    if origin is not None:
        base = stream.time_base
        tick = float(base)
        half = 0.5 / fps
        lowest, highest = origin + (start - half) / tick, origin + (end - half) / tick
        if start > 0:
            container.seek(max(origin, int(lowest)), stream=stream, backward=True)
        else:
            container.seek(0)
        packets, pts, is_timeless = [], [], False
        for packet in container.demux(stream):
            if not packet.size:
                continue
            is_timeless = packet.pts is None
            if is_timeless or (packet.dts is not None and packet.dts >= highest):
                break
            packets.append(packet)
            if not packet.is_discard and lowest <= packet.pts < highest:
                pts.append(packet.pts)
        # without an index, a seek may land anywhere
        is_early = (
            packets and packets[0].is_keyframe and packets[0].pts <= max(lowest + 2 * half / tick, origin)
        )
        if pts and (start <= 0 or is_early) and not is_timeless and len(set(pts)) == len(pts):
            timeline = Timeline(np.array(sorted(pts), dtype=np.int64), base)
            return packets, timeline, range(len(pts))
    return _read_from_start(container, stream, start, end, fps)


def _first_pts(container: Any, stream: Any) -> int | None:
    """The time of the first frame; packets come in decoding order, so it need not be the first packet's."""
    if stream.time_base is None:
        return None
    container.seek(0)
    first: int | None = None
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if packet.pts is None:
            return None
        if first is not None and packet.dts is not None and packet.dts > first:
            break  # all that follow are shown later
        first = packet.pts if first is None else min(first, packet.pts)
    return first


def _read_from_start(
    container: Any, stream: Any, start: float, end: float, fps: float
) -> tuple[list[Any], Timeline, range]:
    """Decodes everything from the beginning, for files without timestamps or with a wrong index."""
    container.seek(0)
    packets = [packet for packet in container.demux(stream) if packet.size]
    timeline = Timeline.of(packets, stream, Fraction(fps).limit_denominator(100_000))
    return packets, timeline, timeline.window(start, end, fps)
