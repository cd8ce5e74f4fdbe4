"""A set's rows in numbers, in one pass: counts, hours, scores, limits, errors, examples.

Memory: two float32 values for each clip and score, whatever else the set holds.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

#: Clips shown for each kind and filter.
EXAMPLES = 8
#: Sources named for each kind of error.
NAMED_SOURCES = 5
#: Stages that drop a file before it is a clip; listed like filters, before them.
STAGES = ("source", "split")
#: What files may be and clips are not, in words, and whether a row's file is.
LOOKS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "pixels made square": lambda row: row.get("sample_aspect", "1") != "1",
    "deinterlaced": lambda row: bool(row.get("is_interlaced")),
    "PQ brought to BT.709": lambda row: row.get("transfer") == "pq",
    "HLG brought to BT.709": lambda row: row.get("transfer") == "hlg",
    "turned upright": lambda row: bool(row.get("rotation")),
    "of a variable rate, or with gaps": lambda row: bool(row.get("is_variable_rate")),
    "with gaps in their times": lambda row: bool(row.get("num_gaps")),
    "frames counted, as they have no times": lambda row: bool(row.get("is_counted")),
    "with bars, which are kept": lambda row: any(row.get("bars") or ()) and not row.get("is_cropped"),
    "bars cut off": lambda row: bool(row.get("is_cropped")),
    "transparent, laid on white": lambda row: bool(row.get("has_alpha")),
    "one of several video streams": lambda row: row.get("num_streams", 1) > 1,
    "animations, of which the first picture is taken": lambda row: bool(row.get("is_animation")),
}


@dataclass
class Pick:
    """The `count` rows with the smallest keys."""

    count: int = EXAMPLES
    _kept: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)

    def offer(self, key: float, row: dict[str, Any]) -> None:
        insort(self._kept, (-key, row["clip_id"], row), key=itemgetter(0, 1))
        del self._kept[: -self.count]

    def rows(self) -> list[dict[str, Any]]:
        """Smallest key first."""
        return [row for _, _, row in sorted(self._kept, key=lambda entry: (-entry[0], entry[1]))]


@dataclass
class FilterFigures:
    """One filter's verdicts.

    kept_values, dropped_values: the numbers it compared, of the clips that it saw. minimum, maximum: its limits.
    num_dropped_first, seconds_dropped_first: the clips that no filter before it dropped. kept, dropped, nearest:
    example clips; nearest are those closest to a limit, on either side.
    """

    name: str
    score: str = ""
    threshold: str = ""
    minimum: float | None = None
    maximum: float | None = None
    num_kept: int = 0
    num_dropped: int = 0
    num_dropped_first: int = 0
    seconds_dropped_first: float = 0.0
    kept_values: array[float] = field(default_factory=lambda: array("f"))
    dropped_values: array[float] = field(default_factory=lambda: array("f"))
    kept: Pick = field(default_factory=Pick)
    dropped: Pick = field(default_factory=Pick)
    nearest: Pick = field(default_factory=Pick)

    @property
    def limits(self) -> list[float]:
        return [limit for limit in (self.minimum, self.maximum) if limit is not None]


@dataclass
class FunnelStep:
    """The clips left after a step. hours: their total length."""

    name: str
    num_clips: int
    hours: float


@dataclass
class ErrorGroup:
    """Rows of one kind of error. sources: the first few, sorted."""

    stage: str
    reason: str
    count: int = 0
    sources: list[str] = field(default_factory=list)


@dataclass
class Figures:
    """Everything that the page and summary.json show."""

    num_rows: int
    by_status: dict[str, int]
    seconds_by_status: dict[str, float]
    filters: list[FilterFigures]
    errors: list[ErrorGroup]
    num_sources: int
    num_captions: int
    versions: dict[str, list[str]]
    looks: dict[str, int]

    def funnel(self) -> list[FunnelStep]:
        """From all rows down to the kept ones: files without a clip, errors, then one step per filter."""
        left, seconds = self.num_rows, sum(self.seconds_by_status.values())
        steps = [FunnelStep("found", left, seconds / 3600)]
        for status, name in (("error", "no error"), ("transient", "no passing fault")):
            if self.by_status.get(status):
                left -= self.by_status[status]
                seconds -= self.seconds_by_status[status]
                steps.append(FunnelStep(name, left, seconds / 3600))
        for part in self.filters:
            left -= part.num_dropped_first
            seconds -= part.seconds_dropped_first
            steps.append(FunnelStep(part.name, left, seconds / 3600))
        return steps


def gather(rows: Iterable[dict[str, Any]]) -> Figures:
    """Figures of rows as `ea_data.records.record` describes them, in one pass."""
    by_status: Counter[str] = Counter()
    seconds_by_status: defaultdict[str, float] = defaultdict(float)
    filters: dict[str, FilterFigures] = {}
    errors: dict[tuple[str, str], ErrorGroup] = {}
    last_source: str | None = None
    versions: dict[str, set[str]] = {}
    num_rows = num_captions = num_sources = 0
    looks: Counter[str] = Counter()
    for row in rows:
        num_rows += 1
        seconds = max(0.0, (row.get("end") or 0.0) - (row.get("start") or 0.0))
        by_status[row["status"]] += 1
        seconds_by_status[row["status"]] += seconds
        num_sources += row["source"] != last_source  # the rows of a file are together
        last_source = row["source"]
        if (row.get("caption") or {}).get("text"):
            num_captions += 1
        looks.update(name for name, has in LOOKS.items() if has(row))
        for name, score in (row.get("scores") or {}).items():
            versions.setdefault(name, set()).add(str(score.get("version", "")))
        if row["status"] in ("error", "transient"):
            _count_error(errors, row)
        _judge(filters, row, seconds)
    for group in errors.values():
        group.sources.sort()
    return Figures(
        num_rows=num_rows,
        by_status=dict(sorted(by_status.items())),
        seconds_by_status=dict(sorted(seconds_by_status.items())),
        filters=sorted(filters.values(), key=lambda part: part.name not in STAGES),
        errors=sorted(errors.values(), key=lambda group: (-group.count, group.stage, group.reason)),
        num_sources=num_sources,
        num_captions=num_captions,
        versions={name: sorted(found) for name, found in sorted(versions.items())},
        looks={name: looks[name] for name in LOOKS if looks[name]},
    )


def _judge(filters: dict[str, FilterFigures], row: dict[str, Any], seconds: float) -> None:
    """Adds a row's decisions; the first filter that drops a clip counts it."""
    may_be_first = row["status"] == "dropped"
    for decision in row.get("decisions") or []:
        name, kept = decision["filter"], decision["verdict"] == "kept"
        part = filters.setdefault(name, FilterFigures(name))
        part.score = decision.get("score") or part.score
        part.threshold = decision.get("threshold") or part.threshold
        part.minimum = decision.get("minimum", part.minimum)
        part.maximum = decision.get("maximum", part.maximum)
        part.num_kept += kept
        part.num_dropped += not kept
        (part.kept if kept else part.dropped).offer(_lot(row["clip_id"], name), row)
        value = decision.get("value")
        if value is not None:
            (part.kept_values if kept else part.dropped_values).append(value)
            if part.limits:
                part.nearest.offer(min(abs(value - limit) for limit in part.limits), row)
        if may_be_first and not kept:
            may_be_first = False
            part.num_dropped_first += 1
            part.seconds_dropped_first += seconds


def _lot(clip_id: str, salt: str) -> float:
    """A number in 0..1, always the same for a clip, so the examples do not depend on the order of rows."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{clip_id}".encode()).digest()[:6], "big") / (1 << 48)


def _count_error(errors: dict[tuple[str, str], ErrorGroup], row: dict[str, Any]) -> None:
    stage, _, reason = str(row.get("error") or "").partition(": ")  # as the pipeline writes them
    if not reason:
        stage, reason = "", stage or "no reason was written"
    # parts that differ from file to file are cut, so that like errors meet
    kind = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", reason)
    kind = re.sub(r"\d+(\.\d+)?", "N", kind)[:200]
    group = errors.setdefault((stage, kind), ErrorGroup(stage, kind))
    group.count += 1
    if len(group.sources) < NAMED_SOURCES and row["source"] not in group.sources:
        group.sources.append(row["source"])
