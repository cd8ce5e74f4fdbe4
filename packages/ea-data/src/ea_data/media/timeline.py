"""The times of a video's frames, for every container: when frames are shown, which of them form a clip, and where time
begins.

This is the one place that knows an origin of time. It is the first frame that can be decoded: packets before it belong
to frames that nobody sees, such as those of a recording that starts in the middle of a group of pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from typing import Any

import numpy as np

from ea_data.media.containers import BadFile, rewind
from ea_runtime.video.streams import FrameDecoder

#: Containers that store when a packet is decoded, not when its frame is shown.
_WITHOUT_PTS = frozenset({"avi", "h264", "hevc", "mpegvideo", "m4v"})
#: Those that have no times at all, and no index.
_RAW = frozenset({"h264", "hevc", "mpegvideo"})
#: Frames that are decoded, or packets that are read again, to see whether their times are right.
_FRAMES_SEEN = 48
#: Number of packets of a video's start among which a decodable frame must be.
_PACKETS_TO_FIRST_FRAME = 2000
#: A rate is variable if more than this share of the intervals (of a short video: two, or an eighth) differs from the
#: usual one ...
_VARIABLE_SHARE, _FEW_INTERVALS, _FEW_SHARE = 0.02, 2, 1 / 8
#: ... by more than this share of it (or one tick of the file's clock).
_INTERVAL_TOLERANCE = 0.1
#: Usual intervals from which on a single longer one is a gap.
_GAP = 1.5
#: A gap from which on two scenes are assumed.
_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Place:
    """A clip's frames: those from `first` on and before `after`.

    These are presentation times in the stream's time base, or, if `is_counted`, numbers of frames from 0.
    """

    first: int
    after: int
    is_counted: bool = False


@dataclass(frozen=True, slots=True)
class Timeline:
    """The times of a video's frames, in the order in which they are shown.

    pts: int64 (N,), ascending, in units of time_base. sizes: int64 (N,), bytes of each frame's packet. is_counted: the
    decoder's frames are to be counted, as their own times are missing, come twice or do not ascend; sizes are in the
    order of packets then.
    """

    pts: np.ndarray
    time_base: Fraction
    sizes: np.ndarray
    is_counted: bool = False

    @property
    def seconds(self) -> np.ndarray:
        """float64 (N,), from the first frame on."""
        return (self.pts - self.pts[0]) * float(self.time_base)

    def bits(self, numbers: range) -> int:
        """Bits of the packets of the frames of these numbers."""
        return 8 * int(self.sizes[numbers.start : numbers.stop].sum())

    def window(self, start: float, end: float, fps: float) -> range:
        """Numbers of the frames of a span, which starts with the frame at `start` and ends before that at `end`.

        Half a frame of tolerance: spans are seconds in floating point, and no frame may be lost or doubled.
        """
        half = 0.5 / fps if fps else 0.0
        first, last = np.searchsorted(self.seconds, (start - half, end - half), side="left")
        return range(int(first), int(last))

    def place(self, numbers: range, fps: Fraction) -> Place:
        """Where the frames of these numbers are. fps: the usual rate, for the length of the last frame."""
        if self.is_counted:
            return Place(numbers.start, numbers.stop, is_counted=True)
        return Place(*self.span(numbers, fps))

    def span(self, numbers: range, fps: Fraction) -> tuple[int, int]:
        """The times of the first of these frames and of the one after the last, in units of time_base."""
        usual = max(1, round(1 / fps / self.time_base))
        after = self.pts[numbers.stop] if numbers.stop < len(self.pts) else self.pts[-1] + usual
        return int(self.pts[numbers.start]), int(after)

    def rate(self, stated: Fraction) -> Fraction:
        """The rate of the frames: the container's own if it agrees with the times, which need not be exact.

        That of a video with gaps is the rate between them, though many containers state the mean.
        """
        seconds = self.seconds[-1]
        if not seconds:
            return stated
        measured = (len(self.pts) - 1) / float(seconds)
        has_gaps = bool(len(self.gaps(_GAP)))
        if (has_gaps or not _agree(stated, measured)) and not self._is_uneven():
            intervals = np.diff(self.pts)
            measured = 1 / (float(intervals[~self._is_off()].mean()) * float(self.time_base))
        return stated if _agree(stated, measured) else Fraction(measured).limit_denominator(1001)

    @property
    def is_variable(self) -> bool:
        """True if the frames are not evenly spaced, or if there is a gap between them."""
        return self._is_uneven() or bool(len(self.gaps(_GAP)))

    def gaps(self, least: float) -> np.ndarray:
        """Numbers of the frames that come after `least` or more usual intervals: int64, ascending."""
        intervals = np.diff(self.pts)
        usual = float(np.median(intervals)) if len(intervals) else 1.0
        return np.flatnonzero(intervals > max(least * usual, usual + 1.01)) + 1

    def gap_seconds(self) -> list[float]:
        """The length of every gap: from the frame before it to the one after it."""
        seconds = self.seconds
        return [float(seconds[number] - seconds[number - 1]) for number in self.gaps(_GAP)]

    def pauses(self) -> list[int]:
        """Numbers of the frames that come after a pause of half a second or more, where frames are even otherwise."""
        if len(self.pts) < 3 or self._is_uneven():
            return []
        usual = float(np.median(np.diff(self.pts))) * float(self.time_base)
        return self.gaps(max(2 * _GAP, _PAUSE_SECONDS / usual)).tolist()

    def timed(self, frames: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """(time from the first frame in units of time_base, frame) of decoded frames, from the first one on."""
        origin = int(self.pts[0])
        for number, frame in enumerate(frames):
            if self.is_counted:
                if number < len(self.pts):
                    yield int(self.pts[number]) - origin, frame
            elif frame.pts is not None and frame.pts >= origin:
                yield frame.pts - origin, frame

    def _is_off(self) -> np.ndarray:
        intervals = np.diff(self.pts)
        usual = float(np.median(intervals))
        return np.abs(intervals - usual) > max(_INTERVAL_TOLERANCE * usual, 1.01)

    def _is_uneven(self) -> bool:
        count = len(self.pts) - 1
        few = min(_FEW_INTERVALS, _FEW_SHARE * count)
        return count > 0 and bool(self._is_off().sum() > max(few, _VARIABLE_SHARE * count))


def place_of(record: Mapping[str, Any]) -> Place:
    """The place of a clip's record in its file."""
    if record["is_counted"]:
        return Place(record["start_frame"], record["start_frame"] + record["num_frames"], is_counted=True)
    return Place(record["start_pts"], record["end_pts"])


def _agree(stated: Fraction, measured: float) -> bool:
    return abs(float(stated) / measured - 1) < 0.01


def read_timeline(container: Any, stream: Any) -> tuple[Timeline, Any]:
    """The timeline of an open video, and its first frame, decoded. Reads every packet; decodes as little as it can.

    Raises BadFile without a frame that can be decoded, and decoding errors.
    """
    packets = list(_packets(container, stream))
    if not packets:
        raise BadFile("it holds no frames")
    frame = _first(container, stream)
    # before a first seek, FFmpeg may not know yet how late the decoder is
    rewind(container)
    again = list(islice(_packets(container, stream), _FRAMES_SEEN))
    if again != packets[: len(again)] and all(packet[0] is not None for packet in again):
        rewind(container)
        packets = list(_packets(container, stream))
    pts: list[Any] = [packet[0] for packet in packets]
    sizes = np.array([packet[3] for packet in packets], np.int64)
    is_timed = bool(stream.time_base) and None not in pts and len(set(pts)) == len(pts)
    is_timed = is_timed and _ascend([dts for _, dts, *_ in packets if dts is not None], strictly=False)
    if is_timed and (_ascend(pts) and _reorders(stream) and not _times_fit(container, stream)):
        skipped = _before_key(packets)
        times = np.array(pts[skipped:], np.int64)
        return Timeline(times, Fraction(stream.time_base), sizes[skipped:], True), frame
    if is_timed and frame.pts is not None:
        # what would be shown before the first frame that decodes is never shown
        times = np.array(pts, np.int64)
        order = np.argsort(times)
        order = order[times[order] >= frame.pts]
        return Timeline(times[order], Fraction(stream.time_base), sizes[order]), frame
    stated = (stream.average_rate, stream.guessed_rate)
    # raw streams have their rate, if any, from the codec
    rate = Fraction(next(filter(None, stated[::-1] if container.format.name in _RAW else stated), 25))
    skipped = _before_key(packets)
    return Timeline(np.arange(len(packets) - skipped), 1 / rate, sizes[skipped:], True), frame


def _packets(container: Any, stream: Any) -> Iterator[tuple[int | None, int | None, bool, int]]:
    """(presentation time, decoding time, is a key frame, bytes) of each packet that follows."""
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            yield packet.pts, packet.dts, packet.is_keyframe, packet.size


def frames_in_order(container: Any, stream: Any, decode: FrameDecoder | None = None) -> Iterator[Any]:
    """Every frame that decodes, from the first; packets that do not decode are skipped."""
    from av import FFmpegError

    decode = decode or FrameDecoder(stream)
    for packet in container.demux(stream):
        try:
            yield from decode(packet)
        except FFmpegError:
            continue


def key_frames(
    container: Any, stream: Any, seconds: float, decode: FrameDecoder | None = None
) -> Iterator[Any]:
    """Key frames at least `seconds` apart, decoded without the frames between them, from the beginning."""
    from av import FFmpegError

    rewind(container)
    decode = decode or FrameDecoder(stream)
    last: float | None = None
    for packet in container.demux(stream):
        time = float(packet.pts * stream.time_base) if packet.pts is not None else None
        if packet.size and not packet.is_keyframe:
            continue
        if packet.size and last is not None and time is not None and 0 <= time - last < seconds:
            continue
        last = time
        try:
            yield from decode(packet)
        except FFmpegError:
            continue


def _first(container: Any, stream: Any) -> Any:
    from av import InvalidDataError

    rewind(container)
    decode = FrameDecoder(stream)
    error: Exception | None = None
    for number, packet in enumerate(container.demux(stream)):
        try:
            frames = decode(packet)
        except InvalidDataError as fault:
            error = fault
            continue
        if frames:
            return frames[0]
        if number > _PACKETS_TO_FIRST_FRAME:
            break
    raise error or BadFile("it holds no frame that can be decoded")


def _before_key(packets: list[tuple[int | None, int | None, bool, int]]) -> int:
    """Number of packets before the first key frame, which are never shown."""
    return next((number for number, (_, _, is_key, _) in enumerate(packets) if is_key), 0)


def _reorders(stream: Any) -> bool:
    return bool(stream.codec_context.has_b_frames)


def _times_fit(container: Any, stream: Any) -> bool:
    """True if packets whose times ascend give frames whose times ascend, though the decoder may reorder them."""
    if container.format.name in _WITHOUT_PTS:
        return False
    rewind(container)
    seen: list[int] = []
    for frame in frames_in_order(container, stream):
        if frame.pts is None:
            return False
        seen.append(frame.pts)
        if len(seen) >= _FRAMES_SEEN:
            break
    return _ascend(seen)


def _ascend(numbers: Sequence[Any], strictly: bool = True) -> bool:
    return all(one < other or (one == other and not strictly) for one, other in pairwise(numbers))
