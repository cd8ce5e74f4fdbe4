"""A small table next to a data set: facts about each file, valid as long as its size and time stay the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ea_runtime.files.atomic import write_atomic
from ea_runtime.files.safe import real_path


class Remembered:
    """`cache/NAME.json` of a set: file_path -> [bytes, mtime in ns, value], values as JSON has them.

    It only saves work: a damaged table counts as empty, and nothing is kept if the folder cannot be written.
    version: of the values' meaning; a table of another version counts as empty.
    """

    def __init__(self, root: Path, name: str, version: int) -> None:
        self.root = root
        self.path = root / "cache" / f"{name}.json"
        self.version = version
        self._changed = False
        self._rows: dict[str, Any] = {}
        try:
            table = json.loads(self.path.read_text(encoding="utf-8"))
            if table["version"] == version and isinstance(table["files"], dict):
                self._rows = table["files"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            self._rows = {}

    def get(self, name: str) -> Any | None:
        """The value of a file (a path beneath the root), or None if it is unknown or the file has changed."""
        row = self._rows.get(name)
        if not isinstance(row, list) or len(row) != 3:
            return None
        try:
            return row[2] if row[:2] == self._stamp(name) else None
        except OSError:
            return None

    def put(self, name: str, value: Any) -> None:
        try:
            self._rows[name] = [*self._stamp(name), value]
        except OSError:
            return
        self._changed = True

    def save(self) -> None:
        """Writes the table, whole or not at all."""
        if not self._changed:
            return
        try:
            self.path.parent.mkdir(exist_ok=True)
            if not real_path(self.path.parent).is_relative_to(self.root):
                return  # a link that leads out of the set
            write_atomic(self.path, json.dumps({"version": self.version, "files": self._rows}))
        except OSError:
            return
        self._changed = False

    def _stamp(self, name: str) -> list[int]:
        stat = os.stat(self.root / name)
        return [stat.st_size, stat.st_mtime_ns]
