"""Reads the captions of a set that were edited in one CSV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ea_data.records.tables import cell_text
from ea_data.training.rows import KINDS, Rows
from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote_path

COLUMNS = ("clip_id", "file", "source", "start", "end", "text")
NEEDED = ("clip_id", "text")


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the list. source: None if the list does not tell it. where: its place, for errors."""

    clip_id: str
    text: str
    source: str | None
    where: str


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
        line = Line(clip, cell_text(text), cell_text(source) if source else None, rows.where)
        if clip in found and found[clip].text != line.text:
            raise UserError(f"{line.where}: is about the clip of {found[clip].where}; remove one of the two")
        found.setdefault(clip, line)
    if not found:
        raise UserError(f"{quote_path(path)} has no rows; `ea data captions export` writes them")
    return found
