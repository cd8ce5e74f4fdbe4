"""The captions of a set as one CSV, for a spreadsheet or an editor.

It begins with a byte order mark, without which Excel takes UTF-8 for something else. A cell that a spreadsheet would
run as a formula has an apostrophe before it; reading takes it away.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ea_data.training.rows import KINDS, Rows
from ea_runtime.errors import UserError
from ea_runtime.files.atomic import atomic_file
from ea_runtime.files.safe import quote_path

COLUMNS = ("clip_id", "file", "source", "start", "end", "text")
NEEDED = ("clip_id", "text")
#: A cell that begins with one of these is run as a formula, and one with an apostrophe could be taken for a mended one.
_UNSAFE = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20", "'")


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the list. source: None if the list has no such column. where: its place, for errors."""

    clip_id: str
    text: str
    source: str | None
    where: str


def safe_cell(text: str) -> str:
    """A cell that no spreadsheet runs."""
    return f"'{text}" if text.startswith(_UNSAFE) else text


def cell_text(cell: str) -> str:
    """The inverse of safe_cell; other cells stay as they are."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_UNSAFE) else cell


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> int:
    """Writes a CSV, whole or not at all, with every text made safe. Returns the number of rows."""
    count = 0
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(columns)
        for row in rows:
            out.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in row])
            count += 1
    return count


def read(path: Path) -> dict[str, Line]:
    """The rows by clip_id. Raises UserError, one line, for a list that cannot be read, a row without clip_id or
    text, and two rows of one clip with different texts."""
    if not path.is_file() or KINDS.get(path.suffix.lower()) != "CSV":
        what = "a .csv or .tsv" if path.is_file() else "an existing file"
        raise UserError(
            f"`CAPTIONS` must be {what}, got {quote_path(path)}; save a spreadsheet as CSV (UTF-8)"
        )
    found: dict[str, Line] = {}
    rows = Rows(path, NEEDED)
    for row in rows:
        clip, text, source = row["clip_id"].strip(), row.get("text"), row.get("source")
        if not clip or text is None:
            lacks = "clip_id" if not clip else "text"
            raise UserError(f"{rows.where}: `{lacks}` is missing; export the captions again to see it")
        line = Line(clip, cell_text(text), None if source is None else cell_text(source), rows.where)
        if clip in found and found[clip].text != line.text:
            raise UserError(f"{line.where}: is about the clip of {found[clip].where}; remove one of the two")
        found.setdefault(clip, line)
    if not found:
        raise UserError(f"{quote_path(path)} has no rows; `ea data captions export` writes them")
    return found
