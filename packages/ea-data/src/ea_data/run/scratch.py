"""Lists and tables that are too long for memory, in a folder that is removed when the run ends."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Spool:
    """A list of records on disk: written once, read any number of times."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def write(self, records: Iterable[dict[str, Any]]) -> Spool:
        """Replaces its records."""
        self.count = 0
        with self.path.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, separators=(",", ":")) + "\n")
                self.count += 1
        return self

    @contextmanager
    def appender(self) -> Iterator[Callable[..., None]]:
        """Takes records one by one, each as a list of its arguments."""
        with self.path.open("w", encoding="utf-8") as file:

            def add(*values: Any) -> None:
                file.write(json.dumps(values) + "\n")

            yield add

    def __iter__(self) -> Iterator[Any]:
        with self.path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    def __len__(self) -> int:
        return self.count


class Scratch:
    """The folder, its spools, and a small database. Nothing in it outlives the run."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self.database = sqlite3.connect(folder / "scratch.sqlite", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-16384"):
            self.database.execute(f"PRAGMA {pragma}")
        self.database.execute("BEGIN")
        self.database.execute(
            "CREATE TABLE names (kind TEXT, name TEXT, value TEXT, PRIMARY KEY (kind, name)) WITHOUT ROWID"
        )

    def spool(self, name: str) -> Spool:
        return Spool(self.folder / f"{name}.jsonl")

    def put(self, kind: str, name: str, value: str = "") -> None:
        """Keeps a value by name, and replaces an earlier one."""
        self.database.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", (kind, name, value))

    def get(self, kind: str, name: str) -> str | None:
        """The value, or None."""
        query = "SELECT value FROM names WHERE kind = ? AND name = ?"
        row = self.database.execute(query, (kind, name)).fetchone()
        return None if row is None else row[0]

    def remove(self, kind: str, name: str) -> None:
        """Forgets a value."""
        self.database.execute("DELETE FROM names WHERE kind = ? AND name = ?", (kind, name))

    def close(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder, ignore_errors=True)
