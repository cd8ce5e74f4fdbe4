"""Records of clips: identities, what scores and filters may put in, and the way to a row of the store and back."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_data.protocols import Decision, Score
from ea_data.records.record import (
    clip_id,
    decision_entry,
    empty_record,
    from_row,
    schema,
    score_entry,
    to_row,
)


def test_identities_are_the_same_everywhere() -> None:
    assert clip_id("content", 1, 2, "é") == "1ba721926f6b0a8716c377f9ed84655a"
    assert len({clip_id("a", 1), clip_id("a", 2), clip_id("a", "1"), clip_id("a1")}) == 4


def test_a_score_must_be_finite_and_json() -> None:
    entry = score_entry(Score(1, (2, 3), {"a": [1]}))
    assert entry == {"value": 1.0, "values": [2.0, 3.0], "detail": {"a": [1]}}
    assert [type(value) for value in (entry["value"], *entry["values"])] == [float] * 3
    nan = float("nan")
    for score in (Score(nan), Score(1.0, (1.0, float("inf"))), Score(1.0, (), {"a": nan})):
        with pytest.raises(ValueError, match=r"finite|Out of range"):
            score_entry(score)
    with pytest.raises(TypeError):
        score_entry(Score(1.0, (), {"a": object()}))


def test_a_decision() -> None:
    kept = decision_entry("f", Decision(True, "two\n  lines", ">= 1", "s", 2, None, 1), "v")
    assert kept == {
        "filter": "f",
        "verdict": "kept",
        "reason": "two lines",
        "threshold": ">= 1",
        "score": "s",
        "value": 2.0,
        "minimum": None,
        "maximum": 1.0,
        "version": "v",
    }
    assert [type(kept[name]) for name in ("value", "maximum")] == [float, float]
    assert decision_entry("f", Decision(False, "no"), "v")["verdict"] == "dropped"


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCORES = st.dictionaries(
    st.text("abc-", min_size=1, max_size=5),
    st.fixed_dictionaries(
        {
            "value": FLOATS,
            "values": st.lists(FLOATS, max_size=3),
            "version": st.text(max_size=3),
            "detail": st.dictionaries(
                st.text(max_size=3),
                FLOATS | st.text(max_size=3) | st.none() | st.lists(st.integers()),
                max_size=3,
            ),
        }
    ),
    max_size=3,
)


@settings(derandomize=True, deadline=None, max_examples=25)  # the same cases each time, no limit by the clock
@given(SCORES, FLOATS, st.text(st.characters(exclude_categories=("Cs",)), max_size=5), st.booleans())
def test_a_record_comes_back_from_the_store(
    scores: dict[str, Any], number: float, text: str, flag: bool
) -> None:
    """A record written to Parquet and read again: all values, scores in their order, details bit for bit."""
    record = {
        **empty_record("a.mp4"),
        "scores": scores,
        "start": number,
        "error": text,
        "is_picture": flag,
        "bars": [1, 2, 3, 4],
        "cuts": [{"start": number, "end": 1.0}],
        "lost": [{"start": 0.0, "end": number, "reason": text}],
        "decisions": [decision_entry("f", Decision(flag, text, text, text, number, None, 1), "v")],
        "caption": {"text": text, "model": "m", "prompt_hash": "h"},
        "file": text,
    }
    row = to_row({**record, "path": "/somewhere"})
    assert "path" not in row
    (stored,) = pa.Table.from_pylist([row], schema=schema()).to_pylist()
    assert stored == row
    found = from_row(stored)
    assert found == record
    assert list(found["scores"]) == list(scores)


def test_an_older_set_lacks_columns() -> None:
    row = to_row(empty_record("a.mp4"))
    del row["bars"]
    assert from_row(row) == empty_record("a.mp4")
    assert schema().names == list(empty_record(""))
