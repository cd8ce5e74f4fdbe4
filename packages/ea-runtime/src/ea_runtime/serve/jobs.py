"""The store of jobs: what clients ask for, what workers claim, report and finish. Imports no torch.

    store = JobStore(StateFolder(folder))
    job = store.add(request, "a client")
    job = store.claim("cuda0")           # a worker's side; any number of processes may share the folder

Each write is one transaction and raises `version`. Files come first, the row last: a completed job always has its
files. A job that ends loses its saved state, a deleted one all of its files. The pictures that a job starts from stay
as long as it does.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from ea_runtime.errors import UserError
from ea_runtime.serve.database import Database, StoreError
from ea_runtime.serve.job import PHASES, STATES, Job, State, progress_of
from ea_runtime.serve.queries import (
    MAX_DEATHS,
    after_release,
    count_of,
    find_job,
    find_jobs,
    mean_seconds,
    next_version,
    order_of,
    seq_of,
    version_of,
)
from ea_runtime.serve.state import StateFolder, new_job_id

__all__ = ["MAX_DEATHS", "PHASES", "STATES", "Job", "JobStore", "QueueFull", "State", "StoreError"]

#: `list` is a method below
Jobs = list[Job]
Ids = list[str]
#: ids of deleted jobs that `changes` still knows
_KEPT_IDS = 10_000
_USUAL_SECONDS = 10.0


class QueueFull(UserError):
    """No more jobs are taken now. retry_after: seconds, for the header of that name."""

    def __init__(self, retry_after: int, message: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class JobStore:
    """The jobs of a state folder. Safe for several threads and processes at once.

    max_queued: jobs that may wait. max_per_client: those of one client. Raises StoreError (a UserError) wherever the
    file cannot be read or written.
    """

    def __init__(self, state: StateFolder, *, max_queued: int = 64, max_per_client: int = 16) -> None:
        self.state = state
        self.max_queued = max_queued
        self.max_per_client = max_per_client
        self._database = Database(state)

    # clients' side

    def add(
        self,
        request: dict[str, Any],
        client: str,
        *,
        remixed_from: str | None = None,
        pictures: Path | None = None,
    ) -> Job:
        """A new job at the end of the queue; on the disk when this returns. Raises QueueFull.

        pictures: a folder of files that the job starts from, on the disk of the state folder; it becomes the job's.
        """
        id = new_job_id()
        try:
            return self._add(id, request, client, remixed_from, pictures)
        except BaseException:
            if pictures is not None:
                self.state.remove_files(id)
            raise

    def _add(
        self, id: str, request: dict[str, Any], client: str, remixed_from: str | None, pictures: Path | None
    ) -> Job:
        text = json.dumps(request, ensure_ascii=False, allow_nan=False)
        with self._database.writing(durable=True) as db:
            waiting = count_of(db, "state = 'queued'")
            if waiting >= self.max_queued:
                raise QueueFull(
                    self._retry_after(db), f"the queue is full with {waiting} jobs; try again later"
                )
            own = count_of(db, "state = 'queued' AND client = ?", client)
            if own >= self.max_per_client:
                raise QueueFull(
                    self._retry_after(db),
                    f"{own} of your jobs wait already, the most for one; try again later",
                )
            if (
                pictures is not None
            ):  # within the transaction, so that `sweep` never sees a folder without its row
                pictures.rename(self.state.pictures(id))
            cursor = db.execute(
                "INSERT INTO jobs (id, client, request, state, created_at, remixed_from, version) "
                "VALUES (?, ?, ?, 'queued', ?, ?, ?)",
                (id, client, text, time.time(), remixed_from, next_version(db, queue=True)),
            )
            return find_jobs(db, "seq = ?", cursor.lastrowid)[0]

    def get(self, id: str) -> Job | None:
        """A job, or None for an id that is unknown or deleted."""
        with self._database.reading() as db:
            return find_job(db, id)

    def list(
        self,
        limit: int = 20,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        states: Collection[State] | None = None,
    ) -> tuple[Jobs, bool]:
        """Jobs by age, newest first with "desc", and whether there are more.

        after: the id that the last page ended with, also of a job that is deleted by now. states: of these alone.
        Raises UserError for an `after` that is unknown.
        """
        with self._database.reading() as db:
            where, values = ["is_deleted = 0"], []
            if after is not None:
                where.append("seq > ?" if order == "asc" else "seq < ?")
                values.append(seq_of(db, after))
            if states is not None:
                where.append(f"state IN ({', '.join('?' * len(states))})")
                values += states
            way = "ASC" if order == "asc" else "DESC"
            found = find_jobs(db, f"{' AND '.join(where)} ORDER BY seq {way} LIMIT ?", *values, limit + 1)
            return found[:limit], len(found) > limit

    def cancel(self, id: str) -> Job | None:
        """Ends a queued job at once and asks the worker of one at work to stop; one that has ended stays as it is."""
        with self._database.writing(durable=True) as db:
            self._cancel(db, id)
            job = find_job(db, id)
        if job is not None and job.state == "cancelled":
            self.state.remove_products(id)
        return job

    def delete(self, id: str) -> Job | None:
        """Removes a job; returns it as it was. One at work is cancelled, its files go when its worker lets go."""
        with self._database.writing(durable=True) as db:
            job = find_job(db, id)
            if job is None:
                return None
            self._cancel(db, id)  # which says that the queue may have changed
            version = next_version(db)
            seq = seq_of(db, id)
            db.execute(
                "INSERT OR REPLACE INTO deleted (id, seq, version) VALUES (?, ?, ?)", (id, seq, version)
            )
            db.execute(
                "DELETE FROM deleted WHERE version <= "
                "(SELECT version FROM deleted ORDER BY version DESC LIMIT 1 OFFSET ?)",
                (_KEPT_IDS,),
            )
            if job.state == "in_progress":
                db.execute("UPDATE jobs SET is_deleted = 1, version = ? WHERE id = ?", (version, id))
            else:
                db.execute("DELETE FROM jobs WHERE id = ?", (id,))
        if job.state != "in_progress":
            self.state.remove_files(id)
        return job

    def counts(self) -> dict[State, int]:
        """Jobs in each state."""
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT state, COUNT(*) FROM jobs WHERE is_deleted = 0 GROUP BY state"
            ).fetchall()
        found = dict(rows)
        return {state: found.get(state, 0) for state in STATES}

    def mean_seconds(self) -> float | None:
        """Seconds from claim to end of the last 20 completed jobs, on average; None if there is none."""
        with self._database.reading() as db:
            return mean_seconds(db)

    def version(self) -> int:
        """The version of the last change."""
        with self._database.reading() as db:
            return version_of(db)

    def changes(self, since: int) -> tuple[Jobs, Ids, int]:
        """(jobs that changed after version `since`, ids of those that were deleted, the version now).

        Where the order of the queue changed, all queued jobs are among them. A `since` from elsewhere counts as 0.
        """
        with self._database.reading() as db:
            version, queue = db.execute("SELECT version, queue FROM counters").fetchone()
            if version == since:
                return [], [], version
            since = since if since < version else 0
            also = "OR state = 'queued'" if queue > since else ""
            jobs = find_jobs(db, f"is_deleted = 0 AND (version > ? {also}) ORDER BY version", since)
            gone = db.execute(
                "SELECT id FROM deleted WHERE version > ? ORDER BY version", (since,)
            ).fetchall()
            return jobs, [row["id"] for row in gone], version

    # workers' side

    def claim(self, worker: str) -> Job | None:
        """The next job, now in progress; None if none waits.

        First what was at work before, then the oldest job of the client that was served the longest time ago.
        """
        with self._database.reading() as db:  # a look that takes no lock: an idle worker asks often
            if not count_of(db, "state = 'queued'"):
                return None
        with self._database.writing() as db:
            order = order_of(db)
            if not order:
                return None
            db.execute("UPDATE counters SET served = served + 1")
            db.execute(
                "INSERT OR REPLACE INTO clients (client, served) "
                "SELECT client, (SELECT served FROM counters) FROM jobs WHERE seq = ?",
                (order[0],),
            )
            db.execute("DELETE FROM clients WHERE served <= (SELECT served FROM counters) - 10000")
            now = time.time()
            db.execute(
                "UPDATE jobs SET state = 'in_progress', phase = 'loading', done = 0, total = 0, worker = ?, "
                "attempts = attempts + 1, is_ahead = 0, claimed_at = ?, started_at = COALESCE(started_at, ?), "
                "version = ? WHERE seq = ?",
                (worker, now, now, next_version(db, queue=True), order[0]),
            )
            return find_jobs(db, "seq = ?", order[0])[0]

    def report(self, id: str, phase: str, done: int, total: int) -> bool:
        """Notes how far a job is. False: stop, it was cancelled or deleted, or is no longer in progress."""
        with self._database.writing() as db:
            db.execute(
                "UPDATE jobs SET phase = ?, done = ?, total = ?, progress = MAX(progress, ?), version = ? "
                "WHERE id = ? AND state = 'in_progress'",
                (phase, done, total, progress_of(phase, done, total), next_version(db), id),
            )
            row = db.execute("SELECT state, cancel_requested FROM jobs WHERE id = ?", (id,)).fetchone()
        return row is not None and row["state"] == "in_progress" and not row["cancel_requested"]

    def finish(self, id: str, result: dict[str, Any]) -> None:
        """Completes a job, whose files must be in place."""
        text = json.dumps(result, ensure_ascii=False, allow_nan=False)
        self._end(id, "state = 'completed', progress = 100, result = ?", text)

    def fail(self, id: str, code: str, message: str) -> None:
        """Ends a job that cannot be done. message: one line."""
        line = " ".join(message.split())
        self._end(id, "state = 'failed', error_code = ?, error_message = ?", code, line)

    def end_cancelled(self, id: str) -> None:
        """Ends a job that was asked to stop."""
        self._end(id, "state = 'cancelled'")

    def hand_back(self, id: str) -> None:
        """Puts a job back at the head of the queue, its place saved; it counts as no attempt."""
        self._release("id = ?", id, died=None)

    def recover(self, worker: str, died: str | None = None) -> None:
        """Puts back what a worker that is gone had in hand, at the head of the queue.

        died: how the worker died by itself ("SIGKILL", "exit code 1"). A second death at the same place fails the job
        with code "worker_died". None: it was stopped, or nobody knows; that counts nothing.
        """
        self._release("worker = ?", worker, died=died)

    def workers(self) -> Ids:
        """Names of the workers that have a job in hand."""
        with self._database.reading() as db:
            rows = db.execute("SELECT DISTINCT worker FROM jobs WHERE state = 'in_progress'").fetchall()
        return sorted(row["worker"] for row in rows)

    def sweep(self) -> None:
        """Removes files of jobs that do not exist, which a kill in the middle of a deletion leaves."""
        found = self.state.job_ids()
        with self._database.reading() as db:
            rows = db.execute("SELECT id, is_deleted FROM jobs").fetchall()
        for id in found - {row["id"] for row in rows}:
            with self._database.writing() as db:  # one that was added meanwhile has its row now
                if not count_of(db, "id = ?", id):
                    self.state.remove_files(id)
        for row in rows:
            if row["is_deleted"] or row["id"] in found:
                self._tidy(row["id"])

    def close(self) -> None:
        """Closes this thread's connection."""
        self._database.close()

    def _end(self, id: str, change: str, *values: Any) -> None:
        with self._database.writing(durable=True) as db:
            db.execute(
                f"UPDATE jobs SET {change}, phase = '', done = 0, total = 0, worker = NULL, cancel_requested = 0, "
                "completed_at = ?, version = ? WHERE id = ? AND state = 'in_progress'",
                (*values, time.time(), next_version(db), id),
            )
        self._tidy(id)

    def _release(self, where: str, value: str, died: str | None) -> None:
        """Ends the hold of a worker on its jobs."""
        with self._database.writing(durable=True) as db:
            rows = db.execute(
                f"SELECT * FROM jobs WHERE state = 'in_progress' AND {where}", (value,)
            ).fetchall()
            if not rows:
                return
            version = next_version(db, queue=True)
            for row in rows:
                change, values = after_release(row, died)
                db.execute(
                    f"UPDATE jobs SET {change}, phase = '', done = 0, total = 0, worker = NULL, version = ? "
                    "WHERE seq = ?",
                    (*values, version, row["seq"]),
                )
        for row in rows:
            self._tidy(row["id"])

    def _tidy(self, id: str) -> None:
        """Removes the files that a job no longer needs, and its row if it was deleted meanwhile."""
        with self._database.reading() as db:
            row = db.execute("SELECT * FROM jobs WHERE id = ?", (id,)).fetchone()
        if row is None or row["state"] in ("queued", "in_progress"):
            return
        if row["is_deleted"]:
            self.state.remove_files(id)
        elif row["state"] != "completed":
            self.state.remove_products(id)
        else:
            self.state.remove_run(id)
        if row["is_deleted"]:
            with self._database.writing() as db:
                db.execute("DELETE FROM jobs WHERE id = ?", (id,))

    def _cancel(self, db: sqlite3.Connection, id: str) -> None:
        version = next_version(db, queue=True)
        db.execute(
            "UPDATE jobs SET state = 'cancelled', completed_at = ?, version = ? "
            "WHERE id = ? AND state = 'queued' AND is_deleted = 0",
            (time.time(), version, id),
        )
        db.execute(
            "UPDATE jobs SET cancel_requested = 1, version = ? "
            "WHERE id = ? AND state = 'in_progress' AND is_deleted = 0 AND cancel_requested = 0",
            (version, id),
        )

    def _retry_after(self, db: sqlite3.Connection) -> int:
        return min(3600, max(1, math.ceil(mean_seconds(db) or _USUAL_SECONDS)))
