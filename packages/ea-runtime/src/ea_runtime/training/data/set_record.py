"""Records what a run's set was made of, so that a resume notices a changed set and accepts a moved one.

A row for each entry, in the list's order: its path within the set, and hashes of its caption, of its file's contents,
and of its kind, sizes and windows. The set's folder is in none of them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ea_runtime.errors import UserError
from ea_runtime.files.atomic import atomic_file
from ea_runtime.files.hashes import sampled_hash
from ea_runtime.files.safe import is_file, plain, quote_path
from ea_runtime.training.data.dataset import TrainingSet

#: The file of a run that holds the record: one line of JSON per row.
NAME = "set.jsonl"
#: Files that a line names for each kind of change.
NAMED = 3


class Row(NamedTuple):
    """An entry of a set. file: "" if it cannot be read. stamp: the file's size and time, which tell if `file` holds."""

    name: str
    caption: str
    file: str
    shape: str
    stamp: str = ""

    @property
    def contents(self) -> tuple[str, ...]:
        """All that a run depends on: without the stamp."""
        return self[:4]


def describe_set(data: TrainingSet, root: Path, before: Iterable[Row] = ()) -> Iterator[Row]:
    """The rows of a set, one by one, so that a set of millions is never in memory.

    root: the folder that its paths are relative to, resolved. before: an earlier record, in which files whose size
    and time are the same were read already.
    """
    buckets, earlier = data.buckets(), iter(before)
    for index in range(len(data.items)):  # repeats follow
        item, bucket, old = data.item(index), buckets[index], next(earlier, None)
        path = item.path
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        stamp = _stamp(path)
        is_known = old is not None and (old.name, old.stamp) == (name, stamp)
        contents = old.file if old is not None and is_known else _hash_of(path) if stamp else ""
        shape = (item.is_video, item.width, item.height, *bucket, data.starts(index, bucket))
        yield Row(name, _short(item.text), contents, _short(repr(shape)), stamp)


def write_record(path: Path, rows: Iterable[Row]) -> None:
    """Writes the record, whole or not at all."""
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_record(path: Path) -> Iterator[Row]:
    """The rows of a record. Raises UserError if it is damaged."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield Row(*json.loads(line))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{quote_path(path)} must tell what the run's set was made of, and cannot be read ({plain(error)}); "
            "remove it if you are sure that the set is the same"
        ) from error


def changes(before: Sequence[Row], now: Sequence[Row]) -> str:
    """The differences of two sets in words: "1 file removed (a.png), 2 captions changed (b.png, c.png)"; "" if none."""
    old, new = _by_key(before), _by_key(now)
    both = [key for key in old if key in new]
    found = [
        _tell("file", "removed", [key for key in old if key not in new]),
        _tell("file", "added", [key for key in new if key not in old]),
        _tell("file", "replaced", [key for key in both if old[key].file != new[key].file]),
        _tell("caption", "changed", [key for key in both if old[key].caption != new[key].caption]),
        _tell(
            "size, length or type",
            "changed",
            # of a replaced file it says nothing new
            [key for key in both if old[key].shape != new[key].shape and old[key].file == new[key].file],
        ),
    ]
    if not any(found) and list(old) != list(new):
        found.append("the order of the list changed")
    return ", ".join(filter(None, found))


def _by_key(rows: Iterable[Row]) -> dict[tuple[str, int], Row]:
    """Rows by (name, how often it came before)."""
    counts = Counter[str]()
    keyed = {}
    for row in rows:
        keyed[row.name, counts[row.name]] = row
        counts[row.name] += 1
    return keyed


def _tell(what: str, change: str, keys: Sequence[tuple[str, int]]) -> str:
    if not keys:
        return ""
    names = ", ".join(plain(name) for name, _ in keys[:NAMED]) + ", ..." * (len(keys) > NAMED)
    return f"{len(keys)} {what}{'s' * (len(keys) > 1 and ',' not in what)} {change} ({names})"


def _stamp(path: Path) -> str:
    """ "" for what is no file: a pipe would block."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}" if is_file(path) else ""


def _hash_of(path: Path) -> str:
    try:
        return sampled_hash(path)[:32]
    except OSError:
        return ""


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
