"""Times of frames: rates, gaps, pauses and spans as numbers, and files of every kind of damage as lists of packets."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_data.media.containers import BadFile
from ea_data.media.timeline import (
    Place,
    Timeline,
    frames_in_order,
    key_frames,
    place_of,
    read_timeline,
)

MILLISECONDS = Fraction(1, 1000)
#: the same cases each time, and no limit by the clock
drawn = settings(derandomize=True, deadline=None, max_examples=40)


def line(pts: list[int], base: Fraction = MILLISECONDS, is_counted: bool = False) -> Timeline:
    return Timeline(np.array(pts, np.int64), base, np.arange(10, 10 + len(pts)), is_counted)


def spaced(*intervals: int, start: int = 500) -> list[int]:
    return [start, *(start + np.cumsum(intervals)).tolist()]


def even(count: int, *others: int, usual: int = 40) -> list[int]:
    """Times of `count` intervals: the others come after the first two usual ones."""
    return spaced(usual, usual, *others, *[usual] * (count - 2 - len(others)))


# -- spans


def test_seconds_and_bits_are_counted_from_the_first_frame() -> None:
    one = line([500, 540, 620])
    assert one.seconds.tolist() == [0, 0.04, 0.12]
    assert one.bits(range(1, 3)) == 8 * (11 + 12)


@drawn
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=30),
    st.data(),
    st.booleans(),
)
def test_spans_that_meet_hold_each_frame_once(intervals: list[int], data: Any, is_counted: bool) -> None:
    """A clip's frames lead to its place, its record back to the place, and the place back to the frames."""
    one, fps = line(spaced(*intervals), is_counted=is_counted), Fraction(1000, 90)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(intervals)), min_size=1)) | {0})
    times = [*one.seconds[cuts].tolist(), float(one.seconds[-1]) + 0.09]
    found: list[int] = []
    for start, end in pairwise(times):
        numbers = one.window(start, end, 2000.0)
        found += numbers
        place = one.place(numbers, fps)
        first, after = one.span(numbers, fps)
        record = {"start_pts": first, "end_pts": after, "start_frame": numbers.start}
        assert place == place_of(record | {"num_frames": len(numbers), "is_counted": is_counted})
        known = np.arange(len(one.pts)) if is_counted else one.pts
        assert np.flatnonzero((known >= place.first) & (known < place.after)).tolist() == list(numbers)
    assert found == list(range(len(one.pts)))


def test_half_a_frame_of_tolerance() -> None:
    one = line(even(10))
    assert one.window(0.08 + 0.019, 0.2 + 0.019, 25) == range(2, 5)
    assert one.window(0.08 + 0.021, 0.2 + 0.021, 25) == range(3, 6)
    assert one.window(0.08 - 0.019, 0.2 - 0.019, 25) == range(2, 5)
    assert one.window(0.08, 0.2, 0) == range(2, 5)


def test_the_last_frame_is_as_long_as_the_rate_says_and_at_least_a_tick() -> None:
    one = line(even(3))
    assert one.span(range(1, 3), Fraction(25)) == (540, 620)
    assert one.span(range(1, 4), Fraction(20)) == (540, 620 + 50)
    assert line([5, 6, 7, 8], Fraction(1, 10)).span(range(2, 4), Fraction(25)) == (7, 9)
    assert one.place(range(1, 4), Fraction(20)) == Place(540, 670, is_counted=False)
    counted = line(even(3), is_counted=True)
    assert counted.place(range(1, 4), Fraction(20)) == Place(1, 4, is_counted=True)
    assert (Place(1, 2).is_counted, line([0]).is_counted) == (False, False)
    with pytest.raises(AttributeError):
        one.pts = counted.pts  # type: ignore[misc]
    assert {Place(1, 2), Place(1, 2), Place(1, 2, is_counted=True)} == {Place(1, 2), Place(1, 2, True)}


# -- rates, gaps, pauses

NTSC = [1001 * number for number in range(9)]


@pytest.mark.parametrize(
    ("pts", "base", "stated", "expected"),
    [
        (even(8), MILLISECONDS, Fraction(25), 25),
        (even(8), MILLISECONDS, Fraction(249, 10), Fraction(249, 10)),  # within a hundredth
        (even(8), MILLISECONDS, Fraction(247, 10), 25),
        (even(8), MILLISECONDS, Fraction(0), 25),
        (NTSC, Fraction(1, 30000), Fraction(10), Fraction(30000, 1001)),
        ([0, 1, 2], Fraction(1002, 24001), Fraction(10), Fraction(24001, 1002).limit_denominator(1001)),
        ([500], MILLISECONDS, Fraction(30), 30),
        # a gap: the rate is that between gaps, though the container states the mean
        (even(16, 1640), MILLISECONDS, Fraction(16000, 2240), 25),
        # two intervals a little longer, no gap: a stated mean stays, another rate is replaced by the usual one
        (even(16, 56, 56), MILLISECONDS, Fraction(1000, 42), Fraction(1000, 42)),
        (even(16, 56, 56), MILLISECONDS, Fraction(60), 25),
        # uneven frames: their mean
        (spaced(10, 40, 10, 40, 10, 40), MILLISECONDS, Fraction(0), 40),
        (spaced(10, 40, 10, 40, 10, 40), MILLISECONDS, Fraction(25), 40),
    ],
)
def test_the_rate(pts: list[int], base: Fraction, stated: Fraction, expected: Fraction) -> None:
    assert line(pts, base).rate(stated) == expected


@pytest.mark.parametrize(
    ("count", "off", "is_uneven"),
    [
        (7, 1, True),
        (8, 1, False),
        (8, 2, True),
        (24, 2, False),
        (24, 3, True),
        (200, 4, False),
        (200, 5, True),
    ],
)
def test_a_rate_varies_if_many_intervals_differ(count: int, off: int, is_uneven: bool) -> None:
    assert line(even(count, *[45] * off)).is_variable is is_uneven


def test_intervals_differ_by_a_tenth_or_more_than_a_tick() -> None:
    assert not line(even(20, *[44] * 4)).is_variable
    assert line(even(20, *[45] * 4)).is_variable
    assert not line(even(20, *[5] * 4, usual=4)).is_variable
    assert line(even(20, *[6] * 4, usual=4)).is_variable


def test_gaps_are_longer_than_one_and_a_half_intervals_and_a_tick() -> None:
    assert line(even(8, 60)).gaps(1.5).tolist() == []
    one = line(even(8, 61))
    assert one.gaps(1.5).tolist() == [3]
    assert one.gap_seconds() == pytest.approx([0.061])
    assert one.is_variable
    assert line(even(8, 60)).gap_seconds() == []
    assert line(even(8, 2, usual=1)).gaps(1.5).tolist() == []
    assert line(even(8, 3, usual=1)).gaps(1.5).tolist() == [3]


def test_pauses_are_longer_than_half_a_second_and_three_frames() -> None:
    assert line(even(20, 500)).pauses() == []
    assert line(even(20, 501)).pauses() == [3]
    assert line(even(20, 3000, usual=1000)).pauses() == []
    assert line(even(20, 3001, usual=1000)).pauses() == [3]
    assert line(even(20, *[900] * 6)).pauses() == []  # uneven: no frame is usual


def test_a_single_frame_has_no_interval() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = line([500])
        assert (one.is_variable, one.pauses(), one.gap_seconds()) == (False, [], [])
        assert not line([500, 540]).is_variable
        assert line([500, 540]).pauses() == []


def test_frames_are_timed_from_the_first_on() -> None:
    frames = [SimpleNamespace(pts=pts) for pts in (None, 460, 500, 540, 620)]
    one = line([500, 540, 620])
    assert [time for time, _ in one.timed(frames)] == [0, 40, 120]
    assert [frame.pts for _, frame in one.timed(frames)] == [500, 540, 620]
    counted = line([500, 540, 620], is_counted=True)  # the frames' own times count for nothing
    assert list(counted.timed(frames)) == [(0, frames[0]), (40, frames[1]), (120, frames[2])]


# -- files


@dataclass
class Packet:
    """A packet of a file, and the times of the frames that the decoder gives for it; None: it does not decode."""

    pts: int | None
    dts: int | None = None
    is_keyframe: bool = True
    size: int = 100
    is_discard: bool = False
    gives: list[Any] | None = field(default_factory=list)


class File:
    """A container and its video stream. again: the packets after the first seek, if they are others."""

    def __init__(self, packets: list[Packet], again: list[Packet] | None = None, **more: Any) -> None:
        self.packets, self.again, self.at, self.seeks = packets, again, 0, 0
        self.format = SimpleNamespace(name=more.get("form", "mp4"))
        self.time_base = more.get("base", MILLISECONDS)
        self.average_rate, self.guessed_rate = more.get("rates", (None, None))
        self.metadata: dict[str, str] = {}
        self.codec_context = SimpleNamespace(
            name="any", has_b_frames=more.get("reorders", False), decode=self._decode
        )

    def seek(self, _: int, **__: Any) -> None:
        self.seeks += 1
        self.at = 0
        # the first seek comes before the first frame
        if self.again is not None and self.seeks > 1:
            self.packets = self.again

    def demux(self, _: Any) -> Iterator[Packet]:
        while self.at < len(self.packets):
            self.at += 1
            yield self.packets[self.at - 1]

    def _decode(self, packet: Packet) -> list[Any]:
        if packet is None:
            return [frame_at(9999)]
        if packet.gives is None:
            raise av.InvalidDataError(1, f"packet at {packet.pts}")
        return [frame_at(pts) for pts in packet.gives]


def frame_at(pts: int | None) -> Any:
    return SimpleNamespace(pts=pts, format=SimpleNamespace(has_palette=False, components=[]))


def plain(*pts: int | None, **more: Any) -> list[Packet]:
    """Packets that are shown as they come, of sizes 10, 11, ..."""
    return [Packet(one, one, gives=[one], size=10 + number, **more) for number, one in enumerate(pts)]


def read(packets: list[Packet], again: list[Packet] | None = None, **more: Any) -> Timeline:
    file = File(packets, again, **more)
    return read_timeline(file, file)[0]


def shown(one: Timeline) -> tuple[list[int], list[int], bool]:
    return one.pts.tolist(), one.sizes.tolist(), one.is_counted


def test_times_are_sorted_and_begin_with_the_first_frame_that_decodes() -> None:
    packets = plain(0, 40, 120, 80)
    packets[0].gives = None
    packets[1].gives = []
    for number, dts in enumerate((0, 0, None, 20)):  # equal or missing decoding times are no fault
        packets[number].dts = dts
    packets[2].gives = [40, 120]
    assert shown(read(packets)) == ([40, 80, 120], [11, 13, 12], False)
    file = File(packets)
    assert read_timeline(file, file)[1].pts == 40
    assert read(packets).time_base == MILLISECONDS


def test_empty_and_discarded_packets_are_no_frames() -> None:
    packets = plain(0, 40, 80, 120)
    packets[1].is_discard = True
    packets[2].size = 0
    assert shown(read(packets)) == ([0, 120], [10, 13], False)
    for none in ([], [Packet(0, size=0)]):
        with pytest.raises(BadFile, match="it holds no frames"):
            read(none)


@pytest.mark.parametrize(
    ("packets", "more"),
    [
        (plain(0, None, 80), {}),
        (plain(0, 40, 40), {}),
        (plain(0, 40, 80), {"base": None}),
        ([Packet(0, 0, gives=[0]), Packet(40, 80), Packet(80, 40)], {}),
        ([Packet(0, 0, gives=[None]), Packet(40, 40), Packet(80, 80)], {}),
    ],
)
def test_frames_without_times_are_counted(packets: list[Packet], more: dict[str, Any]) -> None:
    one = read(packets, rates=(Fraction(20), Fraction(30)), **more)
    assert (one.pts.tolist(), one.time_base, one.is_counted) == ([0, 1, 2], Fraction(1, 20), True)
    assert len(one.sizes) == 3
    packets = [Packet(-40, None, is_keyframe=False, size=5, gives=[]), *packets]  # never shown
    one = read(packets, rates=(Fraction(20), Fraction(30)), **more)
    assert (one.pts.tolist(), len(one.sizes)) == ([0, 1, 2], 3)
    for packet in packets:  # none is marked as a key frame, so none comes before the first
        packet.is_keyframe = False
    assert read(packets, **more).pts.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("form", "rates", "expected"),
    [
        ("avi", (Fraction(20), Fraction(30)), 20),
        ("avi", (None, Fraction(30)), 30),
        ("avi", (None, None), 25),
        *((form, (Fraction(20), Fraction(30)), 30) for form in ("h264", "hevc", "mpegvideo")),
        ("h264", (Fraction(20), None), 20),
    ],
)
def test_a_rate_where_there_are_no_times(form: str, rates: Any, expected: int) -> None:
    assert read(plain(None, None), rates=rates, form=form).time_base == Fraction(1, expected)


@pytest.mark.parametrize("form", ["avi", "h264", "hevc", "mpegvideo", "m4v"])
def test_decoding_times_in_place_of_times_are_counted(form: str) -> None:
    """These containers have no times of frames that are reordered: the packets' ones ascend, as they are decoded."""
    early = Packet(0, 0, is_keyframe=False, size=5, gives=[])
    packets = [early, *plain(40, 80, 120)]
    one = read(packets, form=form, reorders=True)
    assert shown(one) == ([40, 80, 120], [10, 11, 12], True)
    assert not read(packets, form=form, reorders=False).is_counted
    assert not read(packets, form="mp4", reorders=True).is_counted
    frames = plain(40, 120, 80)  # times that do not ascend are those of frames
    for packet in frames:
        packet.dts = None
    assert shown(read(frames, form=form, reorders=True)) == ([40, 80, 120], [10, 12, 11], False)


@pytest.mark.parametrize(
    ("gives", "is_counted"),
    [([0, 40, 80], False), ([0, 80, 40], True), ([0, 0, 80], True), ([0, None, 80], True)],
)
def test_times_that_ascend_but_do_not_fit_the_frames(gives: list[Any], is_counted: bool) -> None:
    packets = plain(0, 40, 80)
    for packet, pts in zip(packets, gives, strict=True):
        packet.gives = [pts]
    assert read(packets, form="mkv", reorders=True).is_counted is is_counted


@pytest.mark.parametrize(("odd", "is_counted"), [(47, True), (48, False)])
def test_the_times_of_the_first_48_frames_are_looked_at(odd: int, is_counted: bool) -> None:
    packets = plain(*[40 * number for number in range(60)])
    packets[odd].gives = [0]
    assert read(packets, form="mkv", reorders=True).is_counted is is_counted


def test_packets_numbered_otherwise_after_a_seek() -> None:
    """FFmpeg may not know yet how late the decoder is; the second reading counts, unless it lacks a time."""
    many = [40 * number for number in range(60)]
    later = [80 + time for time in many]
    assert read(plain(*many), plain(*later)).pts.tolist() == later
    assert read(plain(*many), plain(*many)).pts.tolist() == many
    assert read(plain(*many), plain(None, *later[1:])).pts.tolist() == many
    # the first 48 are compared; decoding times may be missing
    assert read(plain(*many), plain(*many[:48], *later[48:])).pts.tolist() == many
    assert read(plain(*many), plain(*many[:47], *later[47:])).pts.tolist() == many[:47] + later[47:]
    undecoded = plain(*later)
    undecoded[3].dts = None
    assert read(plain(*many), undecoded).pts.tolist() == later
    file = File(plain(*many))
    read_timeline(file, file)
    assert file.seeks == 2  # no third reading without need


def test_a_file_without_a_frame_that_decodes() -> None:
    with pytest.raises(av.InvalidDataError, match="packet at 40"):
        read([Packet(0, gives=None), Packet(40, gives=None)])
    with pytest.raises(BadFile, match="it holds no frame that can be decoded"):
        read([Packet(number, gives=[]) for number in range(2002)] + plain(9000))
    late = [Packet(number, number, gives=[]) for number in range(2001)]
    assert read([*late, *plain(9000)]).pts.tolist() == [9000]


def test_packets_that_do_not_decode_are_skipped() -> None:
    packets = plain(0, 40, 80)
    packets[1].gives = None
    file = File(packets)
    assert [frame.pts for frame in frames_in_order(file, file)] == [0, 80]
    file = File(packets)
    assert list(frames_in_order(file, file, lambda packet: [packet.pts])) == [0, 40, 80]  # type: ignore[arg-type]


def test_key_frames_at_a_distance() -> None:
    times = (0, 400, 999, 1000, 1500, None, 2000, 3000, 500, 1499, 1500)
    packets = plain(*times)
    packets[6].is_keyframe = False
    packets[7].gives = None
    packets.append(Packet(None, is_keyframe=False, size=0))
    file = File(packets)
    file.at = 3
    # from the beginning; a time may be missing, a packet broken, and times begin again where recordings were joined
    assert [frame.pts for frame in key_frames(file, file, 1.0)] == [0, 1000, None, 500, 1500, 9999]
    file = File(packets)
    assert list(key_frames(file, file, 1.0, lambda packet: [packet.pts])) == [  # type: ignore[arg-type]
        *(0, 1000, None, 3000, 500, 1500, None)
    ]
    note = Packet(100, is_keyframe=False, size=0)  # of a frame that was left out: the decoder's to judge
    file = File([*plain(0), note])
    assert list(key_frames(file, file, 1.0, lambda packet: [packet.pts])) == [0, 100]  # type: ignore[arg-type]
    file = File(plain(0, 0, 1))
    assert [frame.pts for frame in key_frames(file, file, 1.0)] == [0]
