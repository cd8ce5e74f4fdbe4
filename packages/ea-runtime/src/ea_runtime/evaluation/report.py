"""A report as plain data: the same videos give the same JSON bytes, with no times and no paths in it.

    {"ea_eval": 1, "folder": {"name", "videos", "unreadable"}, "against": {...} or null, "is_paired",
     "metrics": {NAME: {"summary", "better", "unit", "of", "options", "ours": {...}, "theirs", "difference"}},
     "videos": [{"name", "key", "prompt", "frames", "height", "width", "values", "notes", "reason"}, ...],
     "against_videos": [...], "notes": [...], "bootstrap": {...}, "versions": {...}}

"ours" and "theirs": {"count", "mean", "low", "high", "median", "worst": {"video", "value"}}. "difference": ours -
theirs, {"mean", "low", "high", "pairs", "verdict"}; pairs is 0 if the folders' videos were compared as two sets.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from ea_runtime.errors import UserError
from ea_runtime.evaluation.bootstrap import LEVEL, RESAMPLES, SEED, difference_interval, interval
from ea_runtime.evaluation.chosen import Chosen
from ea_runtime.evaluation.judge import Row, Task, judge
from ea_runtime.evaluation.videos import Folder

VERSION = 1
_VERSIONS = ("ea-runtime", "numpy", "av", "pillow")


@dataclass(frozen=True)
class Report:
    """data: what the JSON holds. strips: JPEG pictures of our videos by name, for the page."""

    data: dict[str, Any]
    strips: Mapping[str, bytes]

    @property
    def is_whole(self) -> bool:
        """False if a video could not be read or a metric failed."""
        rows = [*self.data["videos"], *self.data["against_videos"]]
        return not any(row["reason"] for row in rows)

    def to_json(self) -> str:
        """The text of the JSON file."""
        return json.dumps(self.data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def evaluate(
    folder: Folder,
    against: Folder | None,
    chosen: Sequence[Chosen],
    *,
    jobs: int | None = None,
    on_done: Callable[[], Any] = lambda: None,
) -> Report:
    """Judges a folder, and compares it with another. on_done: called after each of `tasks_of(folder, against)`."""
    found = judge(tasks_of(folder, against), chosen, jobs, on_done)
    ours = [row for row, _ in found if row is not None]
    theirs = sorted((row for _, row in found if row is not None), key=lambda row: row.name)
    shared = {row.key for row in ours} & {row.key for row in theirs}
    notes = [*folder.notes, *(against.notes if against else ()), *_pairing(folder, against, len(shared))]
    notes += _notes(ours) + _notes(theirs)
    data = {
        "ea_eval": VERSION,
        "folder": _about(folder, ours),
        "against": None if against is None else _about(against, theirs),
        "is_paired": bool(shared),
        "metrics": _metrics(chosen, ours, None if against is None else theirs, bool(shared), notes),
        "videos": [_row(row) for row in ours],
        "against_videos": [_row(row) for row in theirs],
        "notes": notes,
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "level": LEVEL},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS},
    }
    return Report(data, {row.name: row.strip for row in ours if row.strip})


def tasks_of(folder: Folder, against: Folder | None) -> list[Task]:
    """Every video once; those of one name together."""
    others = {video.key: video for video in (against.videos if against else ())}
    tasks = [Task(video, others.pop(video.key, None)) for video in folder.videos]
    return tasks + [Task(None, video) for video in others.values()]


def rounded(value: float) -> float:
    """Six digits: what is beyond them depends on the machine."""
    return float(f"{value:.6g}")


def _metrics(
    chosen: Sequence[Chosen], ours: list[Row], theirs: list[Row] | None, is_paired: bool, notes: list[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in chosen:
        record = one.record
        about = {
            "summary": record.summary,
            "better": record.better,
            "unit": record.unit,
            "of": record.of,
            "options": one.options(),
        }
        if record.of == "set":
            found[one.name] = about | _of_sets(one, ours, theirs or [], notes)
            continue
        names = {name for row in [*ours, *(theirs or [])] for name in row.values if _is_of(name, one.name)}
        for name in sorted(names) or [one.name]:
            higher = record.better == "higher"
            entry: dict[str, Any] = {"ours": _stats(name, ours, higher), "theirs": None, "difference": None}
            if theirs is not None and record.of == "video":
                entry["theirs"] = _stats(name, theirs, higher)
                entry["difference"] = _difference(name, ours, theirs, is_paired, higher)
            found[name] = about | entry
    return found


def _is_of(name: str, metric: str) -> bool:
    return name == metric or name.startswith(f"{metric}.")


def _stats(name: str, rows: Sequence[Row], higher: bool) -> dict[str, Any] | None:
    """Of the videos that have this value; None if none has."""
    found = [(row.name, row.values[name]) for row in rows if name in row.values]
    if not found:
        return None
    values = [value for _, value in found]
    low, high = interval(values)
    worst = (min if higher else max)(found, key=lambda one: one[1])
    return {
        "count": len(values),
        "mean": rounded(float(np.mean(values))),
        "low": rounded(low),
        "high": rounded(high),
        "median": rounded(float(np.median(values))),
        "worst": {"video": worst[0], "value": rounded(worst[1])},
    }


def _difference(
    name: str, ours: list[Row], theirs: list[Row], is_paired: bool, higher: bool
) -> dict[str, Any] | None:
    one, other = (
        {row.key: row.values[name] for row in rows if name in row.values} for rows in (ours, theirs)
    )
    if is_paired:
        differences = [value - other[key] for key, value in one.items() if key in other]
        if not differences:
            return None
        count, pairs, mean = len(differences), len(differences), float(np.mean(differences))
        low, high = interval(differences)
    else:
        if not one or not other:
            return None
        count, pairs = min(len(one), len(other)), 0
        mean = float(np.mean(list(one.values())) - np.mean(list(other.values())))
        low, high = difference_interval(list(one.values()), list(other.values()))
    found = {"mean": rounded(mean), "low": rounded(low), "high": rounded(high), "pairs": pairs}
    return found | {"verdict": _verdict(low, high, higher, count)}


def _verdict(low: float, high: float, higher: bool, count: int) -> str:
    if low == high == 0:
        return "equal"
    if count < 2:
        return "too few"
    if low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == higher else "worse"


def _of_sets(one: Chosen, ours: list[Row], theirs: list[Row], notes: list[str]) -> dict[str, Any]:
    features = [
        [row.features[one.name] for row in rows if one.name in row.features] for rows in (ours, theirs)
    ]
    entry: dict[str, Any] = {"ours": None, "theirs": None, "difference": None}
    try:
        # a folder without features makes an empty array, which the metric refuses
        value = float(one.build().distance(*(np.array(rows) for rows in features)))
    except UserError as error:
        notes.append(str(error))
        return entry
    value, count = rounded(value), min(len(rows) for rows in features)
    return entry | {
        "ours": {"count": count, "mean": value, "low": None, "high": None, "median": None, "worst": None}
    }


def _pairing(folder: Folder, against: Folder | None, shared: int) -> list[str]:
    if against is None:
        return []
    counts = len(folder.videos), len(against.videos)
    if not shared:
        return [
            f"no names match: {folder.name!r} and {against.name!r} are compared as two sets, which needs more videos "
            "for the same certainty; metrics of pairs are left out"
        ]
    left = [count - shared for count in counts]
    if any(left):
        return [
            f"{shared} names match and are compared in pairs; without a partner: {left[0]} in {folder.name!r}, "
            f"{left[1]} in {against.name!r}"
        ]
    return []


def _notes(rows: Sequence[Row]) -> list[str]:
    """One line for each reason why a metric has no value, with the number of its videos."""
    counts = Counter(line for row in rows for line in row.notes.items())
    found = []
    for (metric, reason), count in counts.items():
        videos = "1 video" if count == 1 else f"{count} videos"
        found.append(f"{metric} of {videos} is not known: {reason.removeprefix(f'{metric}: ')}")
    return found


def _about(folder: Folder, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "name": folder.name,
        "videos": len(rows),
        "unreadable": sum(not row.size[0] for row in rows),
        "prompts": sum(row.prompt is not None for row in rows),
    }


def _row(row: Row) -> dict[str, Any]:
    frames, height, width = row.size
    return {
        "name": row.name,
        "key": row.key,
        "prompt": row.prompt,
        "frames": frames,
        "height": height,
        "width": width,
        "values": {name: rounded(value) for name, value in sorted(row.values.items())},
        "notes": dict(sorted(row.notes.items())),
        "reason": row.reason,
    }
