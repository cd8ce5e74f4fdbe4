"""What is done and need not be done again: an append-only ledger that survives being killed anywhere.

    with Ledger(folder) as ledger:
        ledger.put(item, stage, version, value)            # JSON-able; on disk within a second, or at flush()
        ledger.get(item)                                   # {(stage, version): value}

Truth are the segments: files of lines `crc32 [item, stage, version, value]`. One is appended to, and synced, under a
name that ends in .part; full or closed, it is renamed. A line that was torn (killed, disk full) is cut off
when the segment is next opened. `index.sqlite` says where each entry lies, so that memory does not grow with
the number of entries; it is derived, and made again from the segments where it is missing, damaged or behind.

A key says what was computed (item), by what (stage) and how (version: a hash of code version and settings). How many
workers there were is in none of them. A later entry of a key replaces an earlier one.
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
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from ea_runtime.errors import UserError
from ea_runtime.files.atomic import sync_path

logger = logging.getLogger("ea")

SEGMENT_BYTES = 64 << 20
#: An entry is on disk at the latest so many seconds, or so many entries, after it was put.
FLUSH_SECONDS, FLUSH_ENTRIES = 1.0, 512
_NAME = re.compile(r"(\d{8})\.(jsonl|part)")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    item BLOB, stage TEXT, version TEXT, segment INTEGER, start INTEGER, length INTEGER,
    PRIMARY KEY (item, stage, version)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS segments (segment INTEGER PRIMARY KEY, indexed INTEGER);
"""


def fingerprint(*parts: Any) -> str:
    """16 hex digits of JSON-able parts: what a version is made of."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(text.encode()).hexdigest()[:16]


class Ledger:
    """One writer at a time (a lock file sees to it); see the module.

    Raises UserError where another process has the ledger, or the folder cannot be written.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._segment_bytes = segment_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / "lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another run is working on {str(folder.parent)!r}; wait for it to end"
            ) from error
        except OSError as error:
            raise UserError(f"{str(folder)!r} cannot be written: {error.strerror or error}") from error
        self._part: FileIO | None = None
        self._number = 0
        self._size = 0
        self._unwritten: list[tuple[bytes, str, str, bytes]] = []
        self._pending: dict[bytes, dict[tuple[str, str], Any]] = {}
        self._flushed = time.monotonic()
        self._readers: dict[int, int] = {}
        self._index = self._open_index()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put(self, item: str, stage: str, version: str, value: Any) -> None:
        """Adds an entry. value: anything JSON can say; numbers must be finite."""
        body = json.dumps([item, stage, version, value], separators=(",", ":"), allow_nan=False).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        key = _key(item)
        self._unwritten.append((key, stage, version, line))
        # what comes back is what a reader of the file would see: lists for tuples, and so on
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
        """Everything that was put is on disk when this returns."""
        self._flushed = time.monotonic()
        if not self._unwritten:
            return
        if self._part is None:
            self._number += 1
            self._part = self._path(self._number, "part").open("ab", buffering=0)
            self._size = 0
        places = []
        end = self._size
        for key, stage, version, line in self._unwritten:
            places.append((key, stage, version, self._number, end, len(line)))
            end += len(line)
        try:
            data = memoryview(b"".join(line for *_, line in self._unwritten))
            while data:
                data = data[self._part.write(data) :]
            os.fsync(self._part.fileno())
        except OSError:
            self._part.truncate(self._size)  # a full disk took a part of it
            raise
        # only now: the index never tells of what the segments might not hold
        self._remember(places, self._number, end)
        self._size = end
        self._unwritten.clear()
        self._pending.clear()
        if self._size >= self._segment_bytes:
            self._seal()

    def close(self) -> None:
        """Writes what is left, and lets the next process in."""
        if not self._lock.is_locked:
            return
        try:
            self.flush()
            self._seal()
        finally:
            for fd in self._readers.values():
                os.close(fd)
            self._readers.clear()
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
            fd = os.open(
                self._path(segment, "part" if is_open else "jsonl"), os.O_RDONLY | getattr(os, "O_BINARY", 0)
            )
            self._readers[segment] = fd
        os.lseek(fd, start, os.SEEK_SET)
        entry = _parse(os.read(fd, length))
        if entry is None:
            logger.warning(
                "the ledger's %s is damaged at byte %d: that is computed again",
                self._path(segment).name,
                start,
            )
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
                # an index that lags after a power failure is caught up; see _catch_up
                index.execute("PRAGMA synchronous=NORMAL")
                index.execute("PRAGMA cache_size=-32768")
                index.executescript(_SCHEMA)
                self._index = index
                self._catch_up(segments)
                return index
            except sqlite3.DatabaseError as error:
                index.close()
                if attempt == 2:
                    raise UserError(
                        f"{str(path)!r} cannot be used: {error}; remove it and run again"
                    ) from error
                logger.warning("the index of the ledger is damaged (%s) and is made again", error)
                self._remove_index()
        raise AssertionError

    def _remove_index(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            (self.folder / f"index.sqlite{suffix}").unlink(missing_ok=True)

    def _recover_segments(self) -> dict[int, int]:
        """{number: bytes} of all segments, after cutting and sealing the one that a killed process left open."""
        found = {}
        for path in sorted(self.folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            if match[2] == "part":
                _cut_torn_tail(path)
                path.rename(self._path(int(match[1])))
                path = self._path(int(match[1]))
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
    """The entry of a line, or None where it is not whole."""
    if len(line) < 11 or line[8:9] != b" " or line[-1:] != b"\n":
        return None
    body = line[9:-1]
    if line[:8] != b"%08x" % zlib.crc32(body):
        return None
    return json.loads(body)


def _lines(path: Path, start: int = 0) -> Iterator[tuple[int, bytes, list[Any] | None]]:
    """(position, line, entry or None where it is damaged) of a segment."""
    with path.open("rb") as file:
        file.seek(start)
        at = start
        for line in file:
            yield at, line, _parse(line)
            at += len(line)


def _cut_torn_tail(path: Path) -> None:
    """Cuts a segment after its last whole line that follows whole lines only."""
    end = 0
    for at, line, entry in _lines(path):
        if entry is None:
            break
        end = at + len(line)
    if end < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
