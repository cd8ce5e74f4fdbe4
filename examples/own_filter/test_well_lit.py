"""The filter's test, as a plugin's author would write it: no video, no model, a fraction of a second.

pytest examples/own_filter
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ea_runtime.errors import UserError
from ea_runtime.plugins.host import make_host
from ea_runtime.settings import validate

PLUGIN = Path(__file__).with_name("well_lit.py")


def make(**options: float) -> Any:
    """The filter as `ea --plugin FILE` finds it."""
    record = make_host([str(PLUGIN)], entry_points=False).get("filters", "well-lit")
    return record.build(validate(record.options, options, "well-lit"))


def record(exposure: float | None) -> dict[str, Any]:
    """A clip's record with only what the filter reads."""
    scores = {} if exposure is None else {"technical": {"value": 0.5, "detail": {"exposure": exposure}}}
    return {"clip_id": "a", "scores": scores}


@pytest.mark.parametrize(("exposure", "is_kept"), [(0.02, False), (0.19, False), (0.2, True), (0.9, True)])
def test_dark_and_washed_out_clips_are_dropped(exposure: float, is_kept: bool) -> None:
    decision = make()(record(exposure))
    assert decision.is_kept is is_kept
    assert decision.reason == f"exposure is {exposure:.2f}"
    assert decision.threshold == ">= 0.2"


def test_the_limit_is_an_option() -> None:
    assert make(least=0.01)(record(0.02)).is_kept
    with pytest.raises(UserError, match="least"):
        make(least=1.5)


def test_a_clip_without_the_score_is_an_error_and_not_a_verdict() -> None:
    with pytest.raises(UserError, match="technical"):
        make()(record(None))
