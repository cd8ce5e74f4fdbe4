"""A filter of your own for `ea data run`: drops clips that are nearly black or nearly white.

    ea --plugin examples/own_filter/well_lit.py data run RAW -o SET --filter well-lit
    ea --plugin examples/own_filter/well_lit.py data filter SET --set filter.well-lit.least=0.3

The scorer `technical` of the default profile has measured the exposure already, so nothing is decoded. As an
installable package: docs/plugins.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from ea_runtime import hookimpl
from ea_runtime.records import FilterRecord


class Options(BaseModel):
    """least: the exposure that is kept, 0 (all black or all white) to 1 (mid gray on average)."""

    least: float = Field(default=0.2, ge=0, le=1)


def build(options: Options) -> Any:
    from ea_data.filter.limits import read_score
    from ea_data.protocols import Decision

    class WellLit:
        version = "1"  # change it when the verdicts change: clips are then judged again
        scores = ("technical",)  # what must be measured before a clip is judged

        def __call__(self, record: Mapping[str, Any]) -> Decision:
            value = read_score(record, "technical", "exposure")
            return Decision(value >= options.least, f"exposure is {value:.2f}", f">= {options.least:g}")

    return WellLit()


@hookimpl
def ea_filters() -> list[FilterRecord]:
    return [FilterRecord("well-lit", "drops clips that are nearly black or white", build, Options)]
