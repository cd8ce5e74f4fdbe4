"""summary.json: the report's figures for programs, a function of the rows alone, without times or machines."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ea_data.report.figures import Figures, FilterFigures


def summary(figures: Figures) -> dict[str, Any]:
    """Counts, hours, funnel, filters with quantiles of the compared numbers, errors, versions of the scores."""
    return {
        "rows": figures.num_rows,
        "sources": figures.num_sources,
        "clips": figures.num_clips,
        "files_without_clip": figures.num_without,
        "raw_hours": _round(figures.raw_seconds / 3600),
        "seconds_lost": {reason: _round(seconds) for reason, seconds in figures.lost_seconds.items()},
        "status": figures.by_status,
        "hours": {name: _round(seconds / 3600) for name, seconds in figures.seconds_by_status.items()},
        "captions": figures.num_captions,
        "empty_captions": figures.num_empty,
        "funnel": [
            {"step": step.name, step.unit: step.count, "hours": _round(step.hours)}
            for step in figures.funnel()
        ],
        "filters": [_filter(part) for part in figures.filters],
        "errors": [
            {"stage": e.stage, "reason": e.reason, "rows": e.count, "sources": e.sources}
            for e in figures.errors
        ],
        "looks": figures.looks,
        "score_versions": figures.versions,
    }


def to_json(table: dict[str, Any]) -> str:
    return json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _filter(part: FilterFigures) -> dict[str, Any]:
    both = (part.kept_values, part.dropped_values)
    values = np.concatenate([np.frombuffer(values, dtype=np.float32) for values in both])
    values = np.sort(values[np.isfinite(values)])
    shares = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    quantiles = {f"{q:g}": _round(float(np.quantile(values, q))) for q in shares} if len(values) else {}
    return {
        **{name: getattr(part, name) for name in ("name", "score", "threshold", "minimum", "maximum")},
        "kept": part.num_kept,
        "dropped": part.num_dropped,
        "quantiles": quantiles,
    }


def _round(value: float) -> float:
    """Six digits: enough for people, and independent of the order of summing."""
    return float(f"{value:.6g}")
