"""Filters over numbers: verdicts, reasons, and an error for a missing score."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from ea_data.components import make
from ea_data.records.record import empty_record
from ea_runtime.errors import UserError


def record(**scores: Any) -> dict[str, Any]:
    return {
        "clip_id": "c1",
        "scores": {name.replace("_", "-"): {"value": value, "detail": {}} for name, value in scores.items()},
    }


@pytest.mark.parametrize(
    ("name", "settings", "scores", "is_kept"),
    [
        ("motion", {}, {"dis": 0.005}, True),
        ("motion", {}, {"dis": 0.0049}, False),
        ("motion", {}, {"dis": 0.31}, False),
        ("motion", {"score": "farneback", "min": 3, "max": 8, "exclusive": True}, {"farneback": 3.0}, False),
        ("motion", {"score": "farneback", "min": 3, "max": 8, "exclusive": True}, {"farneback": 3.01}, True),
        ("motion", {"score": "farneback", "min": 3, "max": 8, "exclusive": True}, {"farneback": 8.0}, False),
        ("text-area", {}, {"rapidocr": 0.01}, True),
        ("text-area", {}, {"rapidocr": 0.0101}, False),
        ("aesthetic", {}, {"clip_aesthetic": 4.0}, True),
        ("aesthetic", {"min": 5}, {"clip_aesthetic": 4.9}, False),
        ("technical", {}, {"technical": 0.29}, False),
        ("threshold", {"score": "mine", "max": 1}, {"mine": 1}, True),
        ("threshold", {"score": "mine", "min": 2}, {"mine": 1}, False),
    ],
)
def test_verdicts(name: str, settings: dict[str, Any], scores: dict[str, float], is_kept: bool) -> None:
    given = record(**scores)
    before = deepcopy(given)
    decision = make("filters", name, settings)(given)
    assert decision.is_kept is is_kept
    assert given == before, "a filter is a pure function"
    assert decision.reason
    assert decision.threshold


def test_reasons_say_what_was_compared_with_what() -> None:
    decision = make("filters", "motion")(record(dis=0.42))
    assert (decision.reason, decision.threshold) == ("motion 0.42 is over 0.3", ">= 0.005 and <= 0.3")
    given = record(technical=0.1)
    given["scores"]["technical"]["detail"] = {"weakest": "sharpness", "sharpness": 0.15}
    assert make("filters", "technical")(given).reason == "technical rating 0.1 is under 0.3 (sharpness 0.15)"


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"dis": None},
        {"dis": {"value": None}},
        {"dis": {"value": float("nan")}},
        {"dis": {"value": "0.1"}},
        {"dis": {"value": True}},
    ],
)
def test_a_missing_score_is_an_error(scores: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="dis"):
        make("filters", "motion")({"clip_id": "c1", "scores": scores})


def test_a_part_of_a_score() -> None:
    check = make("filters", "threshold", {"score": "technical", "part": "noise", "max": 5})
    given = record(technical=1.0)
    given["scores"]["technical"]["detail"] = {"noise": 7.0}
    assert check(given).reason == "technical noise 7 is over 5"
    given["scores"]["technical"]["detail"] = {}
    with pytest.raises(UserError, match="part 'noise'"):
        check(given)


@pytest.mark.parametrize(
    ("settings", "size", "is_kept"),
    [
        ({}, (480, 270), True),
        ({}, (480, 126), False),
        ({}, (1280, 300), False),
        ({"max_aspect": 5}, (1280, 300), True),
        ({"min_pixels": 200_000}, (480, 270), False),
        ({"min_side": 64}, (64, 64), True),
    ],
)
def test_sizes(settings: dict[str, Any], size: tuple[int, int], is_kept: bool) -> None:
    probe = make("scorers", "probe")
    one = {
        **empty_record("a.mp4"),
        "start": 0.0,
        "end": 4.0,
        "width": size[0],
        "height": size[1],
        "fps": 24.0,
    }
    score = probe(None, one)
    one["scores"] = {"probe": {"value": score.value, "detail": score.detail}}
    assert make("filters", "size", settings)(one).is_kept is is_kept
    assert make("filters", "duration")(one).is_kept
    assert not make("filters", "duration", {"max": 3.9})(one).is_kept
    assert make("filters", "threshold", {"score": "probe", "part": "fps", "min": 24})(one).is_kept


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"score": "x"}, "`min` or `max` must be given"),
        ({"score": "x", "min": 2, "max": 1}, "`min` must be at most `max`"),
        ({"score": "x", "most": 1}, "unknown key `most`"),
        ({"min": 1}, "key `score` is missing"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make("filters", "threshold", settings)
