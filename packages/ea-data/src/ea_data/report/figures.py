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
from typing import Any, Literal

#: Clips shown for each kind and filter.
EXAMPLES = 8
#: Sources named for each kind of error.
NAMED_SOURCES = 5
#: Stages that drop a file before it is a clip; listed like filters, before them.
STAGES = ("source", "split")
_ORDER = {name: place for place, name in enumerate(STAGES)}
#: Status of a row that is at fault -> the funnel's step without those.
FAULTS = {"error": "no error", "transient": "no passing fault"}
#: Prefix of the funnel's steps for what a splitter leaves out.
LOST = "lost: "
#: Files whose lost seconds are listed on the page; files.csv has all.
FILES_WITH_LOSSES = 40
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
class Loss:
    """Files or clips that a step costs."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass
class FilterFigures:
    """One filter's verdicts.

    kept_values, dropped_values: the numbers it compared, of the clips that it saw. minimum, maximum: its limits.
    dropped_first: the clips that no filter before it dropped. kept, dropped, nearest:
    example clips; nearest are those closest to a limit, on either side.
    """

    name: str
    score: str = ""
    threshold: str = ""
    minimum: float | None = None
    maximum: float | None = None
    num_kept: int = 0
    num_dropped: int = 0
    dropped_first: Loss = field(default_factory=Loss)
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
    """The rest after a step: files, and from the step "clips" on clips. hours: their total length."""

    name: str
    unit: Literal["files", "clips"]
    count: int
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
    """Everything that the page and summary.json show.

    num_clips, num_without: rows that are clips, and files without one. raw_seconds: of all files. clip_seconds: of all
    clips. lost_seconds: in no clip, by reason. losses: the files that lost most; num_losses: all that lost any.
    num_captions, num_empty: kept clips with and without words.
    """

    num_rows: int
    num_clips: int
    num_without: int
    raw_seconds: float
    clip_seconds: float
    file_faults: dict[str, Loss]
    clip_faults: dict[str, Loss]
    lost_seconds: dict[str, float]
    losses: list[dict[str, Any]]
    num_losses: int
    num_empty: int
    by_status: dict[str, int]
    seconds_by_status: dict[str, float]
    filters: list[FilterFigures]
    errors: list[ErrorGroup]
    num_sources: int
    num_captions: int
    versions: dict[str, list[str]]
    looks: dict[str, int]

    def funnel(self) -> list[FunnelStep]:
        """From all files over those that have clips, and their clips, down to the kept ones, filter by filter."""
        steps = []
        left, seconds = self.num_sources, self.raw_seconds

        def step(name: str, unit: Literal["files", "clips"], loss: Loss) -> None:
            nonlocal left, seconds
            left -= loss.count
            seconds = max(0.0, seconds - loss.seconds)
            steps.append(FunnelStep(name, unit, left, seconds / 3600))

        step("found", "files", Loss())
        for status, name in FAULTS.items():
            if status in self.file_faults:
                step(name, "files", self.file_faults[status])
        for part in self.filters:
            if part.name in STAGES:
                step(part.name, "files", part.dropped_first)
        for reason, lost in self.lost_seconds.items():
            step(f"{LOST}{reason}", "files", Loss(0, lost))
        left, seconds = self.num_clips, self.clip_seconds
        step("clips", "clips", Loss())
        for status, name in FAULTS.items():
            if status in self.clip_faults:
                step(name, "clips", self.clip_faults[status])
        for part in self.filters:
            if part.name not in STAGES:
                step(part.name, "clips", part.dropped_first)
        return steps


def gather(rows: Iterable[dict[str, Any]]) -> Figures:
    """Figures of rows as `ea_data.records.record` describes them, in one pass."""
    by_status: Counter[str] = Counter()
    seconds_by_status: defaultdict[str, float] = defaultdict(float)
    filters: dict[str, FilterFigures] = {}
    errors: dict[tuple[str, str], ErrorGroup] = {}
    faults: dict[bool, defaultdict[str, Loss]] = {True: defaultdict(Loss), False: defaultdict(Loss)}
    last_source: str | None = None
    versions: dict[str, set[str]] = {}
    counts: Counter[str] = Counter()
    file_seconds = clip_seconds = row_seconds = 0.0
    lost: defaultdict[str, float] = defaultdict(float)
    losses = Pick(FILES_WITH_LOSSES)
    looks: Counter[str] = Counter()
    for row in rows:
        is_clip = row.get("num_frames", 1) > 0
        seconds = max(0.0, (row.get("end") or 0.0) - (row.get("start") or 0.0))
        counts["rows"] += 1
        counts["clips"] += is_clip
        by_status[row["status"]] += 1
        seconds_by_status[row["status"]] += seconds
        row_seconds += seconds
        clip_seconds += seconds if is_clip else 0.0
        if row["source"] != last_source:  # the rows of a file are together
            counts["sources"] += 1
            file_seconds += row.get("file_seconds", 0.0)
        last_source = row["source"]
        if row["status"] == "ok" and row.get("caption") is not None:
            counts["captions" if row["caption"]["text"].strip() else "empty"] += 1
        looks.update(name for name, has in LOOKS.items() if has(row))
        for name, score in (row.get("scores") or {}).items():
            versions.setdefault(name, set()).add(str(score.get("version", "")))
        if row["status"] in FAULTS:
            _count_error(errors, row)
            faults[is_clip][row["status"]].add(seconds)
        gone = _lost(row, lost)
        if gone:
            counts["losses"] += 1
            losses.offer(-gone, row)
        _judge(filters, row, seconds - (0.0 if is_clip else gone))
    for group in errors.values():
        group.sources.sort()
    return Figures(
        num_rows=counts["rows"],
        num_clips=counts["clips"],
        num_without=counts["rows"] - counts["clips"],
        raw_seconds=file_seconds or row_seconds,
        clip_seconds=clip_seconds,
        file_faults=dict(faults[False]),
        clip_faults=dict(faults[True]),
        lost_seconds=dict(sorted(lost.items(), key=lambda pair: (-pair[1], pair[0]))),
        losses=losses.rows(),
        num_losses=counts["losses"],
        num_empty=counts["empty"],
        by_status=dict(sorted(by_status.items())),
        seconds_by_status=dict(sorted(seconds_by_status.items())),
        filters=sorted(filters.values(), key=lambda part: _ORDER.get(part.name, len(_ORDER))),
        errors=sorted(errors.values(), key=lambda group: (-group.count, group.stage, group.reason)),
        num_sources=counts["sources"],
        num_captions=counts["captions"],
        versions={name: sorted(found) for name, found in sorted(versions.items())},
        looks={name: looks[name] for name in LOOKS if looks[name]},
    )


def _lost(row: dict[str, Any], lost: defaultdict[str, float]) -> float:
    """Seconds of the row's file that are in no clip; adds them by reason."""
    gone = 0.0
    for one in row.get("lost") or []:
        seconds = one["end"] - one["start"]
        lost[one["reason"]] += seconds
        gone += seconds
    return gone


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
            part.dropped_first.add(seconds)


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
