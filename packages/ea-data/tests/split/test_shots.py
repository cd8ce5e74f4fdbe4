"""Scenes between cuts: gradual ones are left out with a margin, pauses end a stretch."""

from __future__ import annotations

from fractions import Fraction

import pytest

from ea_data.protocols import Cut, Lost
from ea_data.split.chop import spans_of
from ea_data.split.shots import scenes_between

FPS = Fraction(10)


def scenes(
    ends: tuple[float, float], *cuts: tuple[float, float], margin: int = 0
) -> tuple[list[tuple[float, float]], list[Lost]]:
    found, lost = scenes_between(ends, [Cut(*cut) for cut in cuts], FPS, margin)
    return [(start.seconds, end.seconds) for start, end in found], lost


def test_a_hard_cut_loses_no_frame_whatever_the_margin() -> None:
    assert scenes((0, 10), (4, 4), margin=3) == ([(0, 4), (4, 10)], [])


def test_a_gradual_one_is_left_out_with_its_margin() -> None:
    found, lost = scenes((0, 10), (4, 5), margin=2)
    assert found == [(0, pytest.approx(3.8)), (pytest.approx(5.2), 10)]
    assert [(one.reason, one.start, one.end) for one in lost] == [
        ("transition", pytest.approx(3.8), pytest.approx(5.2))
    ]


def test_cuts_of_other_stretches_do_not_count() -> None:
    assert scenes((4, 8), (1, 2), (3, 3), (4, 4), (9, 9)) == ([(4, 8)], [])


def test_a_transition_at_an_end_leaves_no_empty_scene() -> None:
    assert scenes((0, 8), (0, 1), (7, 8))[0] == [(1, 7)]
    assert scenes((0, 1), (0, 1), margin=4) == ([], [Lost(0, 1, "transition")])


def test_transitions_that_touch_are_lost_once() -> None:
    lost = scenes((0, 10), (3, 4), (4.1, 5), margin=2)[1]
    assert [one.start for one in lost] == [pytest.approx(2.8), pytest.approx(4.2)]
    assert lost[0].end == pytest.approx(lost[1].start)


def test_what_is_lost_is_told_in_order_of_time() -> None:
    found, lost = scenes_between((0, 12), [Cut(5, 6)], FPS, 0)
    spans = spans_of(found, [Cut(5, 6)], FPS, 6, 10, lost)
    assert list(spans) == [] or len(spans) == 1
    assert [one.reason for one in spans.lost] == ["too short", "transition"]
    assert spans.longest_scene == pytest.approx(6)
