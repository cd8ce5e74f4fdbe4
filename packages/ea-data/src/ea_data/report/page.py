"""report.html: one file, without scripts, that needs no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ea_data.report.charts import histogram
from ea_data.report.figures import Figures, FilterFigures
from ea_data.report.funnel import funnel
from ea_data.report.paint import text_read
from ea_data.report.templating import render

#: Cuts and losses shown of each file.
PARTS = 12
#: A clip's row -> JPEG bytes of its frames with the findings drawn in, or one line that says why there are none.
Painter = Callable[[dict[str, Any]], "bytes | str"]


def page(
    name: str,
    figures: Figures,
    painter: Painter,
    config: str,
    versions: dict[str, str],
    skipped: str = "",
    timings: dict[str, float] | None = None,
) -> str:
    """The whole page. name: the set's. config: its config.toml as run. versions: program -> version. skipped: the
    files that were skipped, in words. timings: CPU seconds by stage."""

    def example(row: dict[str, Any], part: FilterFigures) -> tuple[bytes | str, dict[str, Any], str]:
        """A clip's picture, its decision, and the decision in words."""
        decision = next(one for one in row["decisions"] if one["filter"] == part.name)
        return painter(row), decision, _says(decision)

    return render(
        "page.html",
        name=name,
        figures=figures,
        skipped=skipped,
        config=config,
        versions=versions | {f"score {part}": ", ".join(found) for part, found in figures.versions.items()},
        example=example,
        text_read=text_read,
        funnel=funnel,
        histogram=histogram,
        timings=timings or {},
        parts=_parts,
    )


def _parts(parts: Sequence[str]) -> str:
    """The first of a list, and how many there are more."""
    more = f"; and {len(parts) - PARTS} more" if len(parts) > PARTS else ""
    return "; ".join(parts[:PARTS]) + more


def _says(decision: dict[str, Any]) -> str:
    """The reason of a drop, which names the value itself; else the value."""
    if decision["verdict"] != "kept" and decision.get("reason"):
        return str(decision["reason"])
    name, value = decision["filter"], decision.get("value")
    return name if value is None else f"{decision.get('score') or name} {value:.4g}"
