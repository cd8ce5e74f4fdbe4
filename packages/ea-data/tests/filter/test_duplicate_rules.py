"""The rules of `duplicate`: which clip is better, which are copies, and what is kept of a kept one."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest

from ea_data.filter import duplicate
from ea_data.filter.alignment import Likeness
from ea_data.filter.duplicate import DuplicateFilter, DuplicateOptions
from ea_data.media.signature import COLOURS, GREY, GRID, Signature
from ea_runtime.errors import UserError


def likeness(**values: Any) -> Likeness:
    """A moving clip and its copy, but for `values`."""
    names = [field.name for field in dataclasses.fields(Likeness)]
    return Likeness(**{**dict.fromkeys(names, 1.0), "moved": (9.0, 9.0), **values})


def signature(seed: int, frames: int, seconds: int) -> Signature:
    drawn = np.random.default_rng(seed)
    luma = drawn.integers(0, 255, (frames, GRID, GRID), np.uint8)
    return Signature(luma, drawn.integers(-9, 9, (seconds, COLOURS, COLOURS, 2), np.int8))


def record(**values: Any) -> dict[str, Any]:
    score = {"value": values.pop("value", 10), "detail": {"signature": "", **values.pop("detail", {})}}
    clip = {"clip_id": "a", "width": 30, "height": 20, "start": 2.0, "end": 4.0, "bits": 50, "codec": "h264"}
    return {**clip, **values, "scores": {"duplicates": score}}


def test_options_have_their_limits() -> None:
    options = DuplicateOptions()
    assert (options.score, options.likeness, options.share) == ("duplicates", 0.95, 0.6)
    assert DuplicateOptions(likeness=0.5, share=0.2) != DuplicateOptions(likeness=1, share=1)
    for wrong in ({"likeness": 0.49}, {"likeness": 1.01}, {"share": 0.19}, {"share": 1.01}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DuplicateOptions(**wrong)


def test_what_makes_a_clip_better() -> None:
    """Colour or grey, pixels without bars, bits a second, age of the codec, clip_id."""
    order = DuplicateFilter(DuplicateOptions()).order
    assert order(record()) == (0, -600, -25, 3, "a")
    assert order(record(value=GREY))[0] == 0
    assert order(record(value=GREY - 0.01))[0] == 1
    assert order(record(detail={"picture": 0.5}))[1] == -300
    assert order(record(end=2.0))[2] == -50  # a picture: of the file
    assert order({**record(end=3.0), "bits": None})[2] == 0
    codecs = [
        "av1",
        "hevc",
        "vp9",
        "h264",
        "vp8",
        "mpeg4",
        "mpeg2video",
        "mjpeg",
        "mpeg1video",
        "another",
        None,
    ]
    assert [order(record(codec=name))[3] for name in codecs] == [*range(10), 9]


@pytest.mark.parametrize(
    ("of", "is_copy"),
    [
        ({}, True),
        # other colours, unless one of the clips is grey
        ({"colour": 2.5, "tint": 4.1, "hue": 0.89}, False),
        ({"colour": 2.4, "tint": 4.1, "hue": 0.89}, True),
        ({"colour": 2.5, "tint": 4.0, "hue": 0.89}, True),
        ({"colour": 2.5, "tint": 4.1, "hue": 0.9}, True),
        # of moving clips the whole may differ
        ({"whole": 0.0, "spread": 0.0}, True),
        ({"change": 0.9, "whole": 0.0}, True),
        ({"change": 0.89}, False),
        ({"scene": 0.89}, False),
        ({"gradient": 0.89}, False),
        ({"moved": (0.5, 0.5), "whole": 0.0}, True),
        # of still ones it may not, and nothing else counts
        ({"moved": (0.4, 0.9), "spread": 2.0, "whole": 0.95, "change": 0.0}, True),
        ({"moved": (0.4, 0.9), "spread": 2.0, "whole": 0.94}, False),
        ({"moved": (0.4, 0.9), "spread": 1.9}, False),
        ({"moved": (0.4, 1.0), "spread": 2.0}, False),
    ],
)
def test_what_a_copy_is(of: dict[str, Any], is_copy: bool) -> None:
    assert DuplicateFilter(DuplicateOptions(likeness=0.9))._is_copy(likeness(**of)) is is_copy


def test_kept_clips_come_back() -> None:
    kept = duplicate._Kept(io.BytesIO())
    given = [signature(seed, frames, seconds) for seed, frames, seconds in ((1, 5, 2), (2, 1, 1), (3, 9, 4))]
    for place, one in enumerate(given):
        kept.add(one, {"clip_id": f"c{place}", "source": "s" * place, "start": 1.5, "end": None, "more": 1})
    for place in (2, 0, 1):
        found = kept.signature(place)
        assert np.array_equal(found.luma, given[place].luma)
        assert np.array_equal(found.colour, given[place].colour)
        assert kept.record(place) == {
            "clip_id": f"c{place}",
            "source": "s" * place,
            "start": 1.5,
            "end": None,
        }
        assert kept.index.find(given[place].luma) == [place]


def test_the_likeliest_clips_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Kept:
        index = type("Index", (), {"find": lambda *_: list(range(100, 160))})()
        signature = staticmethod(lambda number: number)
        record = staticmethod(lambda number: {"clip_id": number})

    answers: dict[int, Likeness] = {}
    monkeypatch.setattr(
        duplicate, "compare", lambda one, other, share: (asked.append(one), answers.get(one))[1]
    )
    check = DuplicateFilter(DuplicateOptions())
    assert check._first(signature(1, 1, 1), Kept()) is None  # type: ignore[arg-type]
    assert asked == list(range(100, 148))
    answers.update({101: likeness(change=0.1), 103: likeness()})
    found = check._first(signature(1, 1, 1), Kept())  # type: ignore[arg-type]
    assert found == ({"clip_id": 103}, likeness())
    assert asked[48:] == [100, 101, 102, 103]


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        (2.0, 8.0, ", clip 2.00 to 8.00 s, from 3.50 to 5.00 s"),
        (2.0, 4.0, ", clip 2.00 to 4.00 s, from 3.50 to 4.00 s"),
        (None, 9.0, ", clip 0.00 to 9.00 s, from 1.50 to 3.00 s"),
        (2.0, 2.0, ""),
        (None, None, ""),
    ],
)
def test_the_reason_has_the_place_in_the_file(start: float | None, end: float | None, span: str) -> None:
    other = {"clip_id": "a", "source": "x.mp4", "start": start, "end": end}
    reason = duplicate._reason(other, likeness(start=1.5, end=3.0))
    assert reason == f"shows the same as x.mp4{span} (clip a)"


@pytest.mark.parametrize("scores", [None, {}, {"duplicates": {"value": 1, "detail": None}}])
def test_a_clip_without_a_signature_is_an_error(scores: Any) -> None:
    check = DuplicateFilter(DuplicateOptions())
    with pytest.raises(UserError, match="clip a has no signature in the score 'duplicates'"):
        check.order({**record(), "scores": scores})
