"""Verdicts from scores: the same from the ledger and computed, in the order of cost, and every end of a clip."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest

from ea_data.profile import Part
from ea_data.protocols import Decision
from ea_data.records.record import empty_record
from ea_data.run.judge import Judge, decide
from ea_runtime.errors import UserError

Known = dict[str, dict[str, Any]]


def scorer(name: str, **more: Any) -> Part:
    return Part(name, SimpleNamespace(version="1", **more), "0123456789")


class AtLeast:
    """Keeps a clip whose scores are all at least 1."""

    version = "2"

    def __init__(self, *scores: str, videos_only: bool | None = None, error: Exception | None = None) -> None:
        self.scores, self.error = scores, error
        if videos_only is not None:
            self.videos_only = videos_only

    def __call__(self, record: dict[str, Any]) -> Decision:
        if self.error is not None:
            raise self.error
        least = min((record["scores"][name]["value"] for name in self.scores), default=1)
        return Decision(least >= 1, f"least {least}", ">= 1")


def filter_of(name: str, *scores: str, **more: Any) -> Part:
    return Part(name, AtLeast(*scores, **more), "abcdefghij")


def judge(scores: list[Part], filters: list[Part], **options: Any) -> Judge:
    return Judge(SimpleNamespace(scores=scores, filters=filters), **options)  # type: ignore[arg-type]


ABC = [scorer("a"), scorer("b"), scorer("c")]
EACH = [filter_of(f"on {name}", name) for name in "abc"]


def entries(**values: Any) -> Known:
    return {
        name: {"error": value} if isinstance(value, str) else {"value": value, "values": [], "detail": {}}
        for name, value in values.items()
    }


def seen(one: Judge, known: Known, **more: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The judge's answer and the record, equal for scores from the ledger and computed ones."""
    made: list[str] = []

    def compute(part: Part) -> dict[str, Any]:
        made.append(part.name)
        return known[part.name]

    record, again = ({**empty_record("a.mp4"), **more} for _ in range(2))
    missing = one(record, known)
    if not missing:
        assert one(again, {}, compute) == ()
        assert again == record
        assert made[: len(record["scores"])] == list(record["scores"])
    return missing, record


def names(record: dict[str, Any]) -> tuple[list[str], list[str], str]:
    return list(record["scores"]), [one["filter"] for one in record["decisions"]], record["status"]


def test_a_clip_that_every_filter_keeps() -> None:
    missing, record = seen(judge(ABC, EACH), entries(a=1, b=2, c=3))
    assert missing == ()
    assert names(record) == (["a", "b", "c"], ["on a", "on b", "on c"], "ok")
    assert record["scores"]["b"] == {"value": 2, "values": [], "detail": {}, "version": "1+01234567"}
    assert record["decisions"][1]["version"] == "2+abcdefgh"
    assert [one["verdict"] for one in record["decisions"]] == ["kept"] * 3


def test_a_drop_ends_the_clip_and_costs_no_further_score() -> None:
    _, record = seen(judge(ABC, EACH), entries(a=1, b=0, c=3))
    assert names(record) == (["a", "b"], ["on a", "on b"], "dropped")
    _, record = seen(judge(ABC, EACH), entries(a=1, b=0, c="failed"))
    assert names(record) == (["a", "b"], ["on a", "on b"], "dropped")
    _, record = seen(judge(ABC, EACH, score_all=True), entries(a=0, b=0, c=3))
    assert names(record) == (["a", "b", "c"], ["on a", "on b", "on c"], "dropped")


def test_a_filter_of_several_scores_decides_once_when_it_has_them_all() -> None:
    both = filter_of("both", "a", "c")
    _, record = seen(judge(ABC, [both, *EACH]), entries(a=1, b=1, c=0))
    assert names(record) == (["a", "b", "c"], ["on a", "on b", "both", "on c"], "dropped")


def test_a_filter_without_a_score_comes_first() -> None:
    at_once = filter_of("at once")
    _, record = seen(judge(ABC, [*EACH, at_once]), entries(a=1, b=1, c=1))
    assert names(record)[1] == ["at once", "on a", "on b", "on c"]
    failing = filter_of("at once", error=ValueError("no\n use"))
    missing, record = seen(judge(ABC, [*EACH, failing]), entries(a=1, b=1, c=1))
    assert (missing, names(record)) == ((), ([], [], "error"))
    assert record["error"] == "at once: ValueError: no use"


def test_a_score_that_failed_is_an_error_of_the_clip() -> None:
    missing, record = seen(judge(ABC, EACH), entries(a=1, b="no frames", c=3))
    assert (missing, names(record)) == ((), (["a"], ["on a"], "error"))
    assert record["error"] == "b: no frames"
    missing, record = seen(judge(ABC, EACH), {"a": {"error": "gone", "stage": "decode"}})
    assert (missing, record["error"]) == ((), "decode: gone")


def test_scores_that_are_missing_are_named_up_to_one_that_is_known_to_fail() -> None:
    one = judge(ABC, EACH)
    assert seen(one, {})[0] == ("a", "b", "c")
    assert seen(one, entries(b=1))[0] == ("a", "c")
    assert seen(one, entries(a=1))[0] == ("b", "c")
    assert seen(one, entries(b="failed"))[0] == ("a",)
    assert seen(one, entries(a=1, c="failed"))[0] == ("b",)
    assert seen(one, entries(a=0))[0] == ()


def test_what_a_record_held_before_does_not_count() -> None:
    stale = {"scores": {"old": 1}, "decisions": ["old"], "status": "error", "error": "old"}
    _, record = seen(judge(ABC, EACH), entries(a=1, b=1, c=1), **stale)
    assert names(record) == (["a", "b", "c"], ["on a", "on b", "on c"], "ok")
    assert record["error"] == ""


def test_pictures_are_not_asked_for_what_only_videos_have() -> None:
    scores = [scorer("a"), scorer("b", videos_only=True), scorer("c", videos_only=False)]
    filters = [
        *EACH,
        filter_of("all", "a", "c", videos_only=False),
        filter_of("moves", "a", videos_only=True),
    ]
    one = judge(scores, filters)
    missing, record = seen(one, entries(a=1, c=1), is_picture=True)
    assert (missing, names(record)) == ((), (["a", "c"], ["on a", "on c", "all"], "ok"))
    _, record = seen(one, entries(a=1, b=1, c=1))
    assert names(record)[1] == ["on a", "moves", "on b", "on c", "all"]


def test_filters_of_the_whole_set_are_kept_apart() -> None:
    of_set = Part("twins", SimpleNamespace(judge=None, scores=("a",), version="1"), "0" * 16)
    one = judge(ABC, [EACH[0], of_set])
    assert (one.filters, one.set_filters) == ([EACH[0]], [of_set])
    assert seen(one, entries(a=1, b=1, c=1))[1]["status"] == "ok"


def test_a_filter_whose_score_nothing_computes_is_a_fault_of_the_program() -> None:
    with pytest.raises(AssertionError, match="every filter's scores"):
        judge(ABC, [filter_of("lost", "z")])(empty_record("a.mp4"), entries(a=1, b=1, c=1))


@pytest.mark.parametrize(
    ("error", "text"),
    [(UserError("no\nscore"), "f: no score"), (KeyError("x"), "f: KeyError: 'x'")],
)
def test_a_filter_may_raise_anything_at_the_cost_of_the_clip(error: Exception, text: str) -> None:
    record = empty_record("a.mp4")
    assert decide(record, filter_of("f", error=error)) is False
    assert (record["status"], record["error"], record["decisions"]) == ("error", text, [])
    record = {**empty_record("a.mp4"), "scores": entries(a=1)}
    assert decide(record, filter_of("f", "a")) is True
    assert (record["status"], len(record["decisions"])) == ("ok", 1)
    record = {**empty_record("a.mp4"), "scores": entries(a=0)}
    assert decide(record, filter_of("f", "a")) is True
    assert record["status"] == "dropped"


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_order_in_which_scores_become_known_does_not_matter(order: tuple[int, ...]) -> None:
    """Filling the ledger in any order ends in the record of a run that computed them in turn."""
    whole = entries(a=1, b=1, c=0)
    one, ended = judge(ABC, EACH), seen(judge(ABC, EACH), whole)[1]
    known: Known = {}
    for place in order:
        name = "abc"[place]
        missing, record = seen(one, known)
        assert name in missing
        known[name] = whole[name]
    missing, record = seen(one, known)
    assert (missing, record) == ((), ended)
