"""files.csv of a set: one row for each raw file, with what became of it.

It is a function of the records, which come file by file, so one file's numbers are in memory at a time.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from ea_data.records.tables import read_table, table_writer
from ea_runtime.errors import UserError

FILES = "files.csv"
COLUMNS = (
    *("source", "status", "reason", "kind", "codec", "width", "height", "fps", "seconds"),
    *("cuts", "longest_scene", "clips", "clips_kept", "seconds_kept", "seconds_dropped", "seconds_lost"),
    *("lost", "cut_times"),
)
SKIPPED = "skipped"
#: Characters of a cell that Excel takes; longer lists end in how many they leave out.
_CELL = 32_000

Record = dict[str, Any]


@contextmanager
def file_table(
    folder: Path, skipped: Iterable[tuple[str, str]]
) -> Iterator[Callable[[Iterable[Record]], Iterator[Record]]]:
    """Writes the table of the records that pass through what it yields, and of the skipped files (source, reason)."""
    try:
        with table_writer(folder / FILES, COLUMNS) as add:

            def told(records: Iterable[Record]) -> Iterator[Record]:
                for _, rows in groupby(records, itemgetter("source")):
                    file = FileFigures()
                    for record in rows:
                        file.add(record)
                        yield record
                    add(file.row())

            yield told
            for source, reason in skipped:
                add([source, SKIPPED, reason, *[""] * (len(COLUMNS) - 3)])
    except OSError as error:
        raise UserError(f"{str(folder / FILES)!r} cannot be written: {error.strerror or error}") from error


def skipped_of(folder: Path) -> Iterator[tuple[str, str]]:
    """(source, reason) of the skipped files in a set's table; none if there is no table."""
    with suppress(OSError, ValueError, csv.Error):
        for row in read_table(folder / FILES):
            if row.get("status") == SKIPPED:
                yield row["source"], row["reason"]


class FileFigures:
    """The fate of one file, from its records in order."""

    def __init__(self) -> None:
        self.first: Record = {}
        self.clips = 0
        self.seconds: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.has_files = False
        self.reasons: dict[str, str] = {}  # status -> of its first record

    def add(self, record: Record) -> None:
        self.first = self.first or record
        status = record["status"]
        self.statuses[status] += 1
        self.has_files |= bool(record["file"])
        if record["num_frames"]:
            self.clips += 1
            self.seconds[status] += record["end"] - record["start"]
        if status == "dropped":
            decision = next(one for one in record["decisions"] if one["verdict"] == "dropped")
            self.dropped[decision["filter"]] += 1
            self.reasons.setdefault(status, decision["reason"])
        elif status != "ok":
            self.reasons.setdefault(status, record["error"])

    def row(self) -> list[Any]:
        first, lost = self.first, self.first["lost"]
        is_known = bool(first["codec"])
        kind = ("picture" if first["is_picture"] else "video") if is_known else ""
        looks = (
            [first["codec"], first["width"], first["height"], f"{first['fps']:g}"] if is_known else [""] * 4
        )
        times = [f"{first[name]:.3f}" for name in ("file_seconds", "longest_scene")]
        return [
            *(first["source"], self._status(), self._reason(), kind, *looks, times[0]),
            *(first["num_cuts"], times[1], self.clips, self.statuses["ok"]),
            *(f"{self.seconds[status]:.3f}" for status in ("ok", "dropped")),
            f"{sum(one['end'] - one['start'] for one in lost):.3f}",
            _list([tell_loss(one) for one in lost]),
            _list([tell_cut(cut) for cut in first["cuts"]]),
        ]

    def _status(self) -> str:
        if self.statuses["ok"]:
            return "kept" if self.has_files else "to write"
        if self.statuses["transient"]:
            return "to retry"
        if self.statuses["error"]:
            return "error"
        return "duplicate" if "source" in self.dropped and not self.clips else "dropped"

    def _reason(self) -> str:
        """Of a file with one fate its reason; of others, how many clips each filter dropped."""
        if sum(self.statuses.values()) == 1:
            return next(iter(self.reasons.values()), "")
        words = [f"{name} dropped {count}" for name, count in sorted(self.dropped.items())]
        words += [f"{self.statuses[name]} {what}" for name, what in _OTHERS if self.statuses[name]]
        faults = [self.reasons[name] for name in ("error", "transient") if name in self.reasons]
        if not self.statuses["ok"] and len(words) == 1:
            faults = faults or [self.reasons["dropped"]]
        return "; ".join([*words, *faults[:1]])


_OTHERS = (("error", "errors"), ("transient", "to retry"))


def tell_cut(cut: dict[str, float]) -> str:
    """A cut's time in seconds: "3.20", or "7.40-7.90" for a gradual one."""
    start, end = (f"{cut[name]:.2f}" for name in ("start", "end"))
    return start if start == end else f"{start}-{end}"


def tell_loss(lost: dict[str, Any]) -> str:
    """Seconds of a file that are in no clip: "0.00-1.50 too short"."""
    return f"{lost['start']:.2f}-{lost['end']:.2f} {lost['reason']}"


def _list(parts: Sequence[str]) -> str:
    """The parts in one cell, as many as fit."""
    text = "; ".join(parts)
    if len(text) > _CELL:
        fit = text[:_CELL].count("; ")
        return f"{'; '.join(parts[:fit])}; and {len(parts) - fit} more"
    return text
