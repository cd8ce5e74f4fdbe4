"""The report as one HTML file, without scripts, that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ea_runtime.evaluation.report import Report
from ea_runtime.evaluation.table import between, number, with_unit
from ea_runtime.files.templates import page_templates

if TYPE_CHECKING:
    from jinja2 import Environment

#: videos shown for each metric, and rows of the table of all
WORST, ROWS = 3, 500
BINS = 24
_WIDTH, _HEIGHT, _FOOT = 300, 74, 18


def page(report: Report) -> str:
    """The whole page."""
    data = report.data
    values = _values(data["videos"]), _values(data["against_videos"])
    return (
        _environment()
        .get_template("page.html")
        .render(
            report=data,
            names=[name for name, metric in data["metrics"].items() if metric["of"] != "set"],
            rows=data["videos"][:ROWS],
            failed=[row for part in ("videos", "against_videos") for row in data[part] if row["reason"]],
            worst=lambda name, better: _worst(data["videos"], name, better),
            strips=report.strips,
            bars=lambda name: _bars(values[0].get(name, []), values[1].get(name, [])),
            span=_span,
            width=_WIDTH,
            height=_HEIGHT,
            foot=_FOOT,
        )
    )


@cache
def _environment() -> Environment:
    return page_templates(
        "ea_runtime.evaluation",
        number=number,
        between=between,
        with_unit=with_unit,
        base64=lambda data: base64.b64encode(data).decode("ascii"),
        anchor=lambda name: "metric-" + "".join(c if c.isalnum() else "-" for c in name),
    )


def _values(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row["values"].items():
            found.setdefault(name, []).append(value)
    return found


def _worst(rows: Sequence[dict[str, Any]], name: str, better: str) -> list[dict[str, Any]]:
    """The few rows with the worst values of a metric; none if all are equal."""
    found = [row for row in rows if name in row["values"]]
    if len({row["values"][name] for row in found}) < 2:
        return []
    return sorted(found, key=lambda row: row["values"][name], reverse=better == "lower")[:WORST]


def _bars(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any] | None:
    """A histogram: bars of our videos, and steps of theirs; None if there is nothing to see."""
    every = np.array([*ours, *theirs])
    if len(ours) < 2 or every.min() == every.max():
        return None
    edges = np.linspace(every.min(), every.max(), BINS + 1)
    counts = [np.histogram(part, edges)[0] / max(len(part), 1) for part in (ours, theirs)]
    top = max(float(part.max()) for part in counts)
    floor = _HEIGHT - _FOOT
    tall = [floor * 0.95 * part / top for part in counts]
    across = _WIDTH / BINS
    line = "".join(
        f"{'L' if i else 'M'}{across * i:.1f} {floor - high:.1f}H{across * (i + 1):.1f}"
        for i, high in enumerate(tall[1])
    )
    return {
        "low": number(float(edges[0])),
        "high": number(float(edges[-1])),
        "bars": [
            {"x": across * i, "width": across - 1, "y": floor - high, "height": high}
            for i, high in enumerate(tall[0])
            if high
        ],
        "line": line if len(theirs) else "",
    }


def _span(difference: dict[str, Any] | None) -> dict[str, float] | None:
    """Where an interval is on a line with 0 in its middle: per cent from the left."""
    if difference is None or difference["low"] is None:
        return None
    reach = max(abs(difference["low"]), abs(difference["high"]), abs(difference["mean"]))
    if reach == 0:
        return None
    place = {key: 50 + 46 * difference[key] / reach for key in ("low", "mean", "high")}
    return place | {"wide": max(place["high"] - place["low"], 0.8)}
