"""Short scenes are dropped, long ones chopped, as EasyAnimate V2's script counts frames."""

from __future__ import annotations

from fractions import Fraction

import pytest

from ea_data.protocols import Span
from ea_data.split.chop import Boundary, chop

FPS = Fraction(24)


def spans(*frames: int, fps: Fraction = FPS) -> list[tuple[int, int]]:
    boundaries = [Boundary(frame, frame / float(fps)) for frame in frames]
    return [(round(span.start * fps), round(span.end * fps)) for span in chop(boundaries, fps, 3, 10)]


def test_a_scene_of_three_to_ten_seconds_stays_as_it_is() -> None:
    assert spans(0, 72, 72 + 240) == [(0, 72), (72, 312)]


def test_a_shorter_one_gives_nothing() -> None:
    assert spans(0, 71, 142) == []


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (241, [(0, 240)]),  # one frame is left
        (240 + 72, [(0, 240)]),  # of three seconds exactly: it must be longer
        (240 + 73, [(0, 240), (240, 313)]),
        (480, [(0, 240), (240, 480)]),
        (500, [(0, 240), (240, 480)]),
    ],
)
def test_a_longer_one_is_chopped_and_a_rest_over_three_seconds_stays(
    end: int, expected: list[tuple[int, int]]
) -> None:
    assert spans(0, end) == expected


def test_pieces_are_whole_frames_at_rates_that_are_none() -> None:
    rate = Fraction(30000, 1001)
    assert spans(0, 700, fps=rate) == [(0, 299), (299, 598), (598, 700)]  # int(10 * 29.97) frames


def test_exact_times_are_kept() -> None:
    odd = [Boundary(0, 0.0), Boundary(100, 4.2), Boundary(200, 8.3)]  # a variable rate
    assert chop(odd, FPS, 3, 10) == [Span(0.0, 4.2), Span(4.2, 8.3)]
