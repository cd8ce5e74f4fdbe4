"""The SQLite file of the jobs: its tables, and transactions that several processes and threads may share.

WAL: readers never wait for a writer. A commit survives the death of every process; one that a client was promised
(`durable`) also a power failure.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ea_runtime.errors import UserError
from ea_runtime.serve.state import StateFolder

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    client TEXT NOT NULL,
    request TEXT NOT NULL,
    state TEXT NOT NULL,
    phase TEXT NOT NULL DEFAULT '',
    done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    progress INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    started_at REAL,
    completed_at REAL,
    error_code TEXT,
    error_message TEXT,
    result TEXT,
    remixed_from TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    version INTEGER NOT NULL,
    is_ahead INTEGER NOT NULL DEFAULT 0,   -- was at work before: comes before all that were not
    claimed_at REAL,
    last_death TEXT,                       -- where a worker died with it: phase and step
    deaths INTEGER NOT NULL DEFAULT 0,
    is_deleted INTEGER NOT NULL DEFAULT 0  -- gone for clients, its worker has not let go yet
);
CREATE INDEX jobs_by_version ON jobs (version);
CREATE INDEX jobs_by_state ON jobs (state, is_deleted);
CREATE TABLE deleted (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, version INTEGER NOT NULL);
CREATE INDEX deleted_by_version ON deleted (version);
CREATE TABLE clients (client TEXT PRIMARY KEY, served INTEGER NOT NULL);
-- version: of the last change; queue: of the last change of who waits where; served: claims so far
CREATE TABLE counters (version INTEGER NOT NULL, queue INTEGER NOT NULL, served INTEGER NOT NULL);
INSERT INTO counters VALUES (0, 0, 0);
"""
#: seconds that a transaction waits for another's
_PATIENCE = 60.0


class StoreError(UserError):
    """The jobs cannot be read or written: a full disk, a damaged file. Trying again later may help."""


class Database:
    """Connections to the file of a state folder, one a thread; makes the tables. Raises UserError."""

    def __init__(self, state: StateFolder) -> None:
        self.path = state.database
        self._local = threading.local()
        with self._explained(), state.lock("schema", -1):
            version = self._connection().execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._make_tables()
            elif version != SCHEMA_VERSION:
                raise UserError(
                    f"{str(self.path)!r} is of version {version}, this program reads {SCHEMA_VERSION}; update ea, or "
                    "give another folder with --state"
                )

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A view of one moment."""
        with self._explained():
            connection = self._connection()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.rollback()

    @contextmanager
    def writing(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction, whole or not at all. durable: on the disk when this returns."""
        with self._explained():
            connection = self._connection()
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    def close(self) -> None:
        """Closes this thread's connection; the next use opens it again."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def _connection(self) -> sqlite3.Connection:
        connection = getattr(self._local, "connection", None)
        # SQLite's file locks belong to a process: a forked one needs new connections
        if connection is None or self._local.process != os.getpid():
            connection = _connect(self.path)
            self._local.connection, self._local.process = connection, os.getpid()
        return connection

    def _make_tables(self) -> None:
        connection = self._connection()
        connection.execute("PRAGMA journal_mode = WAL")
        try:
            connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
        except sqlite3.Error:
            connection.rollback()
            raise
        self.path.chmod(0o600)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError):
                raise  # a fault of ours
            raise StoreError(
                f"the jobs in {str(self.path)!r} cannot be read or written: {error}; free some space, or give another "
                "folder with --state"
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_size_limit = 16777216")
    return connection
