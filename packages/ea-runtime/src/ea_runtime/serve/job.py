"""A job as the store has it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

State = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
#: phases of a job at work, in order, and the percentage of the whole at which each begins
PHASES = {"loading": 0, "text": 3, "denoising": 5, "decoding": 80}
_LAST = 99  # 100 is a completed job's


@dataclass(frozen=True)
class Job:
    """A request for one video or picture, and how far it is.

    client: who asked. request: complete, as `orders.make_order` makes it. phase: "" or one of PHASES; done of total in
    it: texts, network passes, frames. progress: 0 to 100, of the whole job. *_at: seconds since 1970. result:
    {"files": {"video", "thumbnail", "spritesheet", "sidecar"}, "sha256", "timings", "frames", "width", "height",
    "notes"}. attempts: times that a worker took it, without those that a drain or the end of the server undid. version:
    of its last change. position: place in the queue from 1; None outside it.
    """

    id: str
    client: str
    request: dict[str, Any]
    state: State
    phase: str
    done: int
    total: int
    progress: int
    created_at: int
    started_at: int | None
    completed_at: int | None
    error_code: str | None
    error_message: str | None
    result: dict[str, Any] | None
    remixed_from: str | None
    attempts: int
    cancel_requested: bool
    worker: str | None
    version: int
    position: int | None

    @property
    def has_ended(self) -> bool:
        """True for a job that will not change any more, except that it may be deleted."""
        return self.state not in ("queued", "in_progress")


def job_of(row: sqlite3.Row, positions: Mapping[int, int]) -> Job:
    """A row of the table `jobs`. positions: seq -> place in the queue."""
    return Job(
        id=row["id"],
        client=row["client"],
        request=json.loads(row["request"]),
        state=row["state"],
        phase=row["phase"],
        done=row["done"],
        total=row["total"],
        progress=row["progress"],
        created_at=int(row["created_at"]),
        started_at=None if row["started_at"] is None else int(row["started_at"]),
        completed_at=None if row["completed_at"] is None else int(row["completed_at"]),
        error_code=row["error_code"],
        error_message=row["error_message"],
        result=None if row["result"] is None else json.loads(row["result"]),
        remixed_from=row["remixed_from"],
        attempts=row["attempts"],
        cancel_requested=bool(row["cancel_requested"]),
        worker=row["worker"],
        version=row["version"],
        position=positions.get(row["seq"]),
    )


def progress_of(phase: str, done: int, total: int) -> int:
    """Percent of the whole job, 0 to 99, at `done` of `total` in a phase."""
    starts = list(PHASES.items())
    number = next((i for i, (name, _) in enumerate(starts) if name == phase), None)
    if number is None:
        return 0
    start = starts[number][1]
    end = starts[number + 1][1] if number + 1 < len(starts) else _LAST
    return start + int((end - start) * min(1.0, done / total if total > 0 else 0.0))


def place_of(row: sqlite3.Row) -> str:
    """Where a job at work is, in words: "denoising, 7 of 20"."""
    phase = row["phase"] or "starting"
    return f"{phase}, {row['done']} of {row['total']}" if row["total"] else phase
