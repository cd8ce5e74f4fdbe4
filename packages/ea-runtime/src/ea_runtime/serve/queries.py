"""Questions to the table of jobs, within a transaction that the store has begun."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.serve.job import Job, job_of, place_of
from ea_runtime.serve.turns import Waiting, in_order

#: deaths of workers with one job, wherever they happen, until it is given up
MAX_DEATHS = 12


def after_release(row: sqlite3.Row, died: str | None) -> tuple[str, tuple[Any, ...]]:
    """The columns, and their values, of a job whose worker is gone."""
    now = time.time()
    if row["is_deleted"] or row["cancel_requested"]:
        return "state = 'cancelled', cancel_requested = 0, completed_at = ?", (now,)
    again = "state = 'queued', is_ahead = 1"
    if died is None:
        return f"{again}, attempts = attempts - 1", ()
    place = place_of(row)
    is_same, deaths = row["last_death"] == place, row["deaths"] + 1
    if is_same or deaths >= MAX_DEATHS:
        how_often = f"twice at the same place ({place})" if is_same else f"{deaths} times, last at {place}"
        message = (
            f"its worker ended {how_often} with {died}; if the machine ran out of memory, ask for fewer frames or a "
            "smaller size"
        )
        return (
            "state = 'failed', error_code = 'worker_died', error_message = ?, completed_at = ?",
            (message, now),
        )
    return f"{again}, last_death = ?, deaths = ?", (place, deaths)


def next_version(db: sqlite3.Connection, *, queue: bool = False) -> int:
    """The version of this change. queue: it may change who waits where."""
    db.execute(f"UPDATE counters SET version = version + 1{', queue = version + 1' if queue else ''}")
    return version_of(db)


def version_of(db: sqlite3.Connection) -> int:
    """The version of the last change."""
    return db.execute("SELECT version FROM counters").fetchone()[0]


def count_of(db: sqlite3.Connection, where: str, *values: Any) -> int:
    """The number of jobs for which a condition holds."""
    return db.execute(f"SELECT COUNT(*) FROM jobs WHERE {where}", values).fetchone()[0]


def mean_seconds(db: sqlite3.Connection) -> float | None:
    """Seconds from claim to end of the last 20 completed jobs, on average; None if there is none."""
    return db.execute(
        "SELECT AVG(seconds) FROM (SELECT completed_at - claimed_at AS seconds FROM jobs WHERE state = 'completed' "
        "ORDER BY completed_at DESC LIMIT 20)"
    ).fetchone()[0]


def order_of(db: sqlite3.Connection) -> list[int]:
    """The seqs of queued jobs in the order of their turns."""
    rows = db.execute("SELECT seq, client, is_ahead FROM jobs WHERE state = 'queued'").fetchall()
    served = db.execute("SELECT client, served FROM clients").fetchall() if rows else []
    return in_order([Waiting(row["seq"], row["client"], bool(row["is_ahead"])) for row in rows], dict(served))


def find_jobs(db: sqlite3.Connection, where: str, *values: Any) -> list[Job]:
    """The jobs for which a condition holds, with their places in the queue."""
    rows = db.execute(f"SELECT * FROM jobs WHERE {where}", values).fetchall()
    is_queued = any(row["state"] == "queued" for row in rows)
    positions = {seq: place for place, seq in enumerate(order_of(db), 1)} if is_queued else {}
    return [job_of(row, positions) for row in rows]


def find_job(db: sqlite3.Connection, id: str) -> Job | None:
    """The job with an id, unless it is deleted."""
    return next(iter(find_jobs(db, "id = ? AND is_deleted = 0", id)), None)


def seq_of(db: sqlite3.Connection, id: str) -> int:
    """The age of a job, also of a deleted one. Raises UserError for an unknown id."""
    for table in ("jobs", "deleted"):
        row = db.execute(f"SELECT seq FROM {table} WHERE id = ?", (id,)).fetchone()
        if row is not None:
            return row["seq"]
    raise UserError(f"`after` must be the id of a job, got {id[:60]!r}; leave it out to start at the first")
