"""The ledger of finished work: append-only, and it survives a kill at any point.

    with Ledger(folder) as ledger:
        ledger.put(item, stage, version, value)            # JSON-able; on disk within a second, or at flush()
        ledger.get(item)                                   # {(stage, version): value}

The segments are the truth: files of lines `crc32 [item, stage, version, value]`. The open one is appended to and
synced under a name that ends in .part; full or closed, it is renamed. A torn line (after a kill, or on a full disk) is
cut off when the segment is opened next. `index.sqlite` holds the place of each entry, so memory does not grow with
their number; it is derived, and rebuilt from the segments if it is missing, damaged or behind.

A key names the input (item), the computation (stage) and its version (a hash of code version and settings), but not
the number of workers. A later entry of a key replaces an earlier one.

SQLite alone is as fast and survives the same kills, but a damaged page of its tree fails the whole run; a damaged
line here costs one entry.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import time
import zlib
from collections.abc import Iterator
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ea_data.records.full_disk import is_full
from ea_runtime.errors import UserError
from ea_runtime.files.atomic import sync_path

logger = logging.getLogger("ea")

SEGMENT_BYTES = 64 << 20
#: An entry is on disk after at most this many seconds, or entries.
FLUSH_SECONDS, FLUSH_ENTRIES = 1.0, 512
_NAME = re.compile(r"(\d{8})\.(jsonl|part)")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    item BLOB, stage TEXT, version TEXT, segment INTEGER, start INTEGER, length INTEGER,
    PRIMARY KEY (item, stage, version)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS segments (segment INTEGER PRIMARY KEY, indexed INTEGER);
"""


def fingerprint(*parts: Any) -> str:
    """16 hex digits of JSON-able parts: a version."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(text.encode()).hexdigest()[:16]


class Ledger:
    """One writer at a time, by a lock file; see the module.

    Raises UserError if another process has the ledger, or the folder cannot be written.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._segment_bytes = segment_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / "lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            message = f"another run is working on {str(folder.parent)!r}; wait for it to end"
            raise UserError(message) from error
        except OSError as error:
            raise UserError(f"{str(folder)!r} cannot be written: {error.strerror or error}") from error
        self._part: FileIO | None = None
        self._unwritten: list[tuple[bytes, str, str, bytes]] = []
        self._pending: dict[bytes, dict[tuple[str, str], Any]] = {}
        self._flushed = time.monotonic()
        self._readers: dict[int, int] = {}
        self._index = self._open_index()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def put(self, item: str, stage: str, version: str, value: Any) -> None:
        """Adds an entry. value: anything that JSON can hold; numbers must be finite."""
        body = json.dumps([item, stage, version, value], separators=(",", ":"), allow_nan=False).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        key = _key(item)
        self._unwritten.append((key, stage, version, line))
        # `get` returns what a reader of the file would see: lists for tuples, and so on
        self._pending.setdefault(key, {})[stage, version] = json.loads(body)[3]
        late = time.monotonic() - self._flushed > FLUSH_SECONDS
        if late or len(self._unwritten) >= FLUSH_ENTRIES:
            self.flush()

    def get(self, item: str) -> dict[tuple[str, str], Any]:
        """Every entry of an item, by (stage, version)."""
        key = _key(item)
        rows = self._index.execute(
            "SELECT stage, version, segment, start, length FROM entries WHERE item = ?", (key,)
        )
        found = {}
        for stage, version, *place in rows:
            entry = self._read(*place)
            if entry is not None:
                found[stage, version] = entry[3]
        return found | self._pending.get(key, {})

    def flush(self) -> None:
        """Puts all entries on disk before it returns."""
        self._flushed = time.monotonic()
        if not self._unwritten:
            return
        if self._part is None:
            self._number += 1
            self._part = self._path(self._number, "part").open("ab", buffering=0)
            self._size = 0
        places, end = [], self._size
        for *entry, line in self._unwritten:
            places.append((*entry, self._number, end, len(line)))
            end += len(line)
        try:
            data = memoryview(b"".join(line for *_, line in self._unwritten))
            while data:
                data = data[self._part.write(data) :]
            os.fsync(self._part.fileno())
        except OSError:
            self._part.truncate(self._size)  # a full disk took only part of it
            raise
        # only now: the index never names entries that the segments may lack
        self._remember(places, self._number, end)
        self._size = end
        self._unwritten.clear()
        self._pending.clear()
        if self._size >= self._segment_bytes:
            self._seal()

    def close(self) -> None:
        """Writes the remaining entries, and lets the next process in."""
        if not self._lock.is_locked:
            return
        try:
            self.flush()
            self._seal()
        finally:
            for fd in self._readers.values():
                os.close(fd)
            self._index.close()
            self._lock.release()

    def __len__(self) -> int:
        self.flush()
        return self._index.execute("SELECT count(*) FROM entries").fetchone()[0]

    # -- segments

    def _path(self, number: int, suffix: str = "jsonl") -> Path:
        return self.folder / f"{number:08d}.{suffix}"

    def _seal(self) -> None:
        if self._part is None:
            return
        self._part.close()
        self._part = None
        self._path(self._number, "part").rename(self._path(self._number))
        sync_path(self.folder)

    def _read(self, segment: int, start: int, length: int) -> list[Any] | None:
        fd = self._readers.get(segment)
        if fd is None:
            if len(self._readers) >= 64:
                os.close(self._readers.pop(next(iter(self._readers))))
            is_open = self._part is not None and segment == self._number
            path = self._path(segment, "part" if is_open else "jsonl")
            fd = self._readers[segment] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        os.lseek(fd, start, os.SEEK_SET)
        entry = _parse(os.read(fd, length))
        if entry is None:
            name = self._path(segment).name
            logger.warning("the ledger's %s is damaged at byte %d: its entry is computed again", name, start)
        return entry

    # -- index

    def _open_index(self) -> sqlite3.Connection:
        path = self.folder / "index.sqlite"
        segments = self._recover_segments()
        self._number = max(segments, default=0)
        for attempt in (1, 2):
            index = sqlite3.connect(path, isolation_level=None, cached_statements=16)
            try:
                index.execute("PRAGMA journal_mode=WAL")
                # _catch_up mends an index that lags after a power failure
                index.execute("PRAGMA synchronous=NORMAL")
                index.execute("PRAGMA cache_size=-32768")
                index.executescript(_SCHEMA)
                self._index = index
                self._catch_up(segments)
                return index
            except sqlite3.DatabaseError as error:
                index.close()
                if is_full(error):
                    raise
                if attempt == 2:
                    message = f"{str(path)!r} cannot be used: {error}; remove it and run again"
                    raise UserError(message) from error
                logger.warning("the index of the ledger is damaged (%s) and is rebuilt", error)
                for suffix in ("", "-wal", "-shm"):
                    (self.folder / f"index.sqlite{suffix}").unlink(missing_ok=True)
        raise AssertionError

    def _recover_segments(self) -> dict[int, int]:
        """{number: bytes} of all segments, once the one that a killed process left open is cut and sealed."""
        found = {}
        for path in sorted(self.folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            if match[2] == "part":
                _cut_torn_tail(path)
                path = path.rename(self._path(int(match[1])))
                sync_path(self.folder)
            found[int(match[1])] = path.stat().st_size
        return found

    def _catch_up(self, segments: dict[int, int]) -> None:
        known = dict(self._index.execute("SELECT segment, indexed FROM segments"))
        if any(size > segments.get(number, 0) for number, size in known.items()):
            # segments were removed or cut by hand: positions cannot be trusted
            self._index.execute("DELETE FROM entries")
            self._index.execute("DELETE FROM segments")
            known = {}
        for number, size in sorted(segments.items()):
            if known.get(number, 0) < size:
                self._index_segment(number, known.get(number, 0))

    def _index_segment(self, number: int, start: int) -> None:
        places: list[tuple[bytes, str, str, int, int, int]] = []
        for at, line, entry in _lines(self._path(number), start):
            if entry is not None:
                places.append((_key(entry[0]), entry[1], entry[2], number, at, len(line)))
            start = at + len(line)
            if len(places) >= 10_000:
                self._remember(places, number, start)
                places = []
        self._remember(places, number, start)

    def _remember(self, places: list[tuple[bytes, str, str, int, int, int]], number: int, size: int) -> None:
        self._index.execute("BEGIN")
        self._index.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", places)
        self._index.execute("INSERT OR REPLACE INTO segments VALUES (?, ?)", (number, size))
        self._index.execute("COMMIT")


def _key(item: str) -> bytes:
    return sha256(item.encode("utf-8", "surrogatepass")).digest()[:16]


def _parse(line: bytes) -> list[Any] | None:
    """The entry of a line, or None if it is not whole."""
    check, _, body = line.removesuffix(b"\n").partition(b" ")
    if not body or not line.endswith(b"\n") or check != b"%08x" % zlib.crc32(body):
        return None
    return json.loads(body)


def _lines(path: Path, start: int = 0) -> Iterator[tuple[int, bytes, list[Any] | None]]:
    """(position, line, entry or None if damaged) of a segment."""
    with path.open("rb") as file:
        file.seek(start)
        at = start
        for line in file:
            yield at, line, _parse(line)
            at += len(line)


def _cut_torn_tail(path: Path) -> None:
    """Cuts a segment after its last whole line before any damaged one."""
    end = 0
    for at, line, entry in _lines(path):
        if entry is None:
            break
        end = at + len(line)
    if end < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
