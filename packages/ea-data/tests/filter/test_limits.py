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
        ("aesthetic", {}, {"clip_aesthetic": 3.99}, False),
        ("aesthetic", {"min": 5}, {"clip_aesthetic": 4.9}, False),
        ("technical", {}, {"technical": 0.29}, False),
        ("technical", {}, {"technical": 0.3}, True),
        ("compression", {}, {"compression": 0.29}, False),
        ("compression", {}, {"compression": 0.3}, True),
        ("motion", {}, {"dis": 0.3}, True),
        ("motion", {"max": None}, {"dis": 1e9}, True),
        ("motion", {"min": None}, {"dis": -1}, True),
        ("threshold", {"score": "mine", "min": 1, "max": 1}, {"mine": 1}, True),
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
    assert (decision.score, decision.value, decision.minimum, decision.maximum) == (
        "motion",
        0.42,
        0.005,
        0.3,
    )
    given = record(technical=0.1)
    check = make("filters", "technical")
    given["scores"]["technical"]["detail"] = {"weakest": "sharpness", "sharpness": 0.15}
    assert check(given).reason == "technical rating 0.1 is under 0.3 (sharpness 0.15)"
    for detail in ({"weakest": "sharpness"}, {"weakest": 3, 3: 0.5}, {}, None):
        given["scores"]["technical"]["detail"] = detail
        assert check(given).reason == "technical rating 0.1 is under 0.3"
    one = make(
        "filters", "threshold", {"score": "technical", "part": "noise", "min": 5, "max": 7, "exclusive": True}
    )
    given["scores"]["technical"]["detail"] = {"weakest": "noise", "noise": 5}
    assert one(given).reason == "technical noise 5 is under 5"  # a part is not explained by itself
    assert one.threshold == "> 5 and < 7"
    given["scores"]["technical"]["detail"] = {"noise": 6}
    assert one(given).reason == "technical noise 6 is > 5 and < 7"
    assert (
        make("filters", "threshold", {"score": "mine", "max": 1})(record(mine=0)).reason == "mine 0 is <= 1"
    )


def test_which_filters_judge_pictures() -> None:
    needed = {"threshold": {"score": "mine", "max": 1}}
    names = ("duration", "motion", "text-area", "aesthetic", "technical", "compression", "threshold")
    of_videos = [name for name in names if make("filters", name, needed.get(name, {})).videos_only]
    assert of_videos == ["duration", "motion"]


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"dis": None},
        {"dis": {"value": None}},
        {"dis": {"value": float("nan")}},
        {"dis": {"value": "0.1"}},
        {"dis": {"value": True}},
        {"dis": {"value": float("-inf")}},
        None,
    ],
)
def test_a_missing_score_is_an_error(scores: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"clip c1(:| has no) score 'dis'(;| must be a finite number, got )"):
        make("filters", "motion")({"clip_id": "c1", "scores": scores})


def test_a_part_of_a_score() -> None:
    check = make("filters", "threshold", {"score": "technical", "part": "noise", "max": 5})
    given = record(technical=1.0)
    given["scores"]["technical"]["detail"] = {"noise": 7.0}
    assert check(given).reason == "technical noise 7 is over 5"
    for detail in ({}, None, {"noise": "much"}):
        given["scores"]["technical"]["detail"] = detail
        with pytest.raises(
            UserError, match="clip c1: score 'technical', part 'noise', must be a finite number"
        ):
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
        ({}, (128, 128), True),
        ({}, (127, 128), False),
        ({}, (128, 512), True),
        ({}, (514, 128), False),
        ({"min_pixels": 128 * 130, "min_side": 0}, (128, 130), True),
        ({"min_pixels": 0, "max_aspect": 1, "min_side": 0}, (300, 300), True),
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
    decision = make("filters", "size", settings)(one)
    assert decision.is_kept is is_kept
    assert ("large enough" in decision.reason) is is_kept
    assert ("pixels >= " in decision.threshold) is bool(settings.get("min_pixels"))
    assert make("filters", "duration", {"min": 4, "max": 4})(one).is_kept
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


@pytest.mark.parametrize(("seconds", "is_kept"), [(2.9, False), (3.0, True), (10.0, True), (10.1, False)])
def test_clips_of_three_to_ten_seconds_are_kept(seconds: float, is_kept: bool) -> None:
    one = {"scores": {"probe": {"detail": {"seconds": seconds}}}}
    assert make("filters", "duration")(one).is_kept is is_kept


@pytest.mark.parametrize(("key", "value"), [("min_side", -1), ("min_pixels", -1), ("max_aspect", 0.9)])
def test_sizes_that_make_no_sense(key: str, value: float) -> None:
    with pytest.raises(UserError, match=key):
        make("filters", "size", {key: value})
