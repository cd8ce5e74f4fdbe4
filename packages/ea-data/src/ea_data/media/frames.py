"""Decodes a clip once for all that need frames of it.

The packets of a clip are read, and their times say which frames there are; then each packet is decoded once, and each
frame is converted once for each requested size and colour.

Shape legend: N frames, H height, W width (upright).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ea_data.media.containers import BadFile, open_beneath, open_video
from ea_data.media.look import Look
from ea_data.media.probe import file_errors, timeline_of
from ea_data.media.timeline import Place, frames_in_order, read_timeline
from ea_data.protocols import FrameRequest, Frames
from ea_runtime.video.pictures import open_picture, to_rgb
from ea_runtime.video.streams import FrameDecoder

#: Part of the version of everything computed from frames: a change here may change every score.
VERSION = "4"


class Window:
    """The frames of one clip. times: float64 (N,), seconds from the clip's first frame."""

    def __init__(
        self,
        container: Any,
        stream: Any,
        place: Place,
        times: np.ndarray,
        packets: list[Any] | None,
        strict: bool,
    ) -> None:
        self._container, self._stream, self._place, self._strict = container, stream, place, strict
        self._packets = packets
        self._numbers = {int(time): number for number, time in enumerate(times)}
        base = 1.0 if place.is_counted else float(stream.time_base)
        self.times = (times - times[0]) * base

    def decode(self) -> Iterator[tuple[int, Any]]:
        """(number within the clip, frame) in order of time, once. Raises decoding errors, and BadFile for a damaged
        frame (strict only)."""
        left = len(self.times)
        for count, frame in enumerate(self._frames()):
            number = count - self._place.first if self._place.is_counted else self._numbers.get(frame.pts, -1)
            if not 0 <= number < len(self.times):
                continue
            if self._strict and frame.is_corrupt:
                raise BadFile("it cannot be read: a frame is damaged")
            yield number, frame
            left -= 1
            if not left:
                return

    def _frames(self) -> Iterator[Any]:
        if self._packets is None:
            yield from frames_in_order(self._container, self._stream)
            return
        decode = FrameDecoder(self._stream)
        for packet in (*self._packets, None):
            yield from decode(packet)


@contextmanager
def open_window(
    path: Path, root: Path, place: Place, fps: float, *, strict: bool = False
) -> Iterator[Window]:
    """The frames of a clip. fps: the file's rate. Raises BadFile if there are none."""
    with file_errors(), open_beneath(path, root) as file:
        with open_video(file, strict) as (container, stream):
            if not place.is_counted:
                packets, times = _read_packets(container, stream, place)
                if not len(times):
                    raise BadFile("it does not hold the clip's frames")
                yield Window(container, stream, place, times, packets, strict)
                return
            timeline, _ = read_timeline(container, stream)
            seconds = timeline.seconds[place.first : place.after]
            if not len(seconds):
                raise BadFile("it does not hold the clip's frames")
        # opened again: a raw stream cannot be sought
        file.seek(0)
        with open_video(file, strict) as (container, stream):
            yield Window(container, stream, place, seconds, None, strict)


def read_frames(
    path: Path,
    root: Path,
    start: float,
    end: float,
    fps: float,
    requests: Iterable[FrameRequest],
    *,
    strict: bool = False,
    place: Place | None = None,
    look: Look | None = None,
) -> dict[FrameRequest, Frames]:
    """The frames of each request, from one pass of decoding.

    start, end: seconds from the file's first frame; fps: the file's rate, 0 for a picture. place: the same span, if
    it is known; else the whole file's packets are read to find it. look: how its frames are shown.
    Raises BadFile, one line, even if a single requested frame cannot be decoded.
    """
    requests = list(dict.fromkeys(requests))
    if not fps:
        with file_errors():
            return _read_picture(path, root, requests)
    place = place or find_place(path, root, start, end, fps)
    with open_window(path, root, place, fps, strict=strict) as window:
        wanted = {request: select(request, window.times, fps) for request in requests}
        pixels: dict[tuple[int, str, int], np.ndarray] = {}  # (max_side, colour, number)
        forms: dict[int, set[tuple[int, str]]] = {}
        for request, numbers in wanted.items():
            for number in numbers:
                forms.setdefault(int(number), set()).add((request.max_side, request.colour))
        convert = Converter(look.rotation if look is not None else None)
        last = max(forms, default=-1)
        if forms:
            decoded = window.decode()
            if look is not None and not look.is_plain:
                # deinterlacing needs the frames between, too
                needed = (one for one in decoded if look.is_interlaced or one[0] in forms)
                decoded = look.show_numbered(needed)
            for number, frame in decoded:
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
    """Converts frames of FFmpeg to upright arrays: uint8 (H, W, 3) or (H, W). rotation: degrees; None: as they say."""

    def __init__(self, rotation: int | None = None) -> None:
        self._rotation = rotation
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
        says = getattr(frame, "rotation", 0) if self._rotation is None else self._rotation
        return upright(picture.to_ndarray(), says)


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


def _read_packets(container: Any, stream: Any, place: Place) -> tuple[list[Any], np.ndarray]:
    """The packets of a clip's frames and of those they refer to, and the frames' times: int64, ascending."""
    packets: list[Any] = []
    times: list[int] = []
    target: int | None = place.first
    for attempt in range(3):
        if target is None or attempt == 2:
            container.seek(0)
        else:
            container.seek(target, stream=stream, backward=True)
        packets.clear()
        times.clear()
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.dts is not None and packet.dts >= place.after:
                break  # all that follow are shown later
            packets.append(packet)
            if not packet.is_discard and packet.pts is not None and place.first <= packet.pts < place.after:
                times.append(packet.pts)
        # without an index, a seek may land anywhere
        is_early = bool(packets) and packets[0].is_keyframe and (packets[0].pts or 0) <= place.first
        if (is_early and place.first in times) or attempt == 2:
            break
        # containers seek by decoding time, which is earlier: the key frame before
        target = packets[0].dts - 1 if packets and packets[0].dts is not None else None
    return packets, np.array(sorted(times), np.int64)


def find_place(path: Path, root: Path, start: float, end: float, fps: float) -> Place:
    """The place of a span: seconds from the file's first frame. Raises BadFile if it holds no frame."""
    timeline = timeline_of(path, root)
    numbers = timeline.window(start, end, fps)
    if not numbers:
        raise BadFile(f"it holds no frame between {start:g} s and {end:g} s")
    return timeline.place(numbers, Fraction(fps).limit_denominator(100_000))
