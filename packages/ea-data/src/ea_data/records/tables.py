"""CSV for spreadsheets: UTF-8, and no cell that they would run.

A file begins with a byte order mark, without which Excel takes UTF-8 for something else. A cell that a spreadsheet
would run as a formula has an apostrophe before it, which `cell_text` takes away.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ea_runtime.files.atomic import atomic_file

#: A cell that begins with one of these is run as a formula, and one with an apostrophe could be taken for a mended one.
_UNSAFE = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20", "'")


@contextmanager
def table_writer(path: Path, columns: Iterable[str]) -> Iterator[Callable[[Iterable[Any]], None]]:
    """Takes rows one by one; the file is written when the block succeeds. Raises OSError."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        # before Python 3.13, a carriage return alone is not quoted and ends the row for whoever reads it
        quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        out.writerow(columns)

        def add(row: Iterable[Any]) -> None:
            cells = [safe_cell(cell) if isinstance(cell, str) else cell for cell in row]
            has_return = any(isinstance(cell, str) and "\r" in cell for cell in cells)
            (quoted if has_return else out).writerow(cells)

        yield add


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table that `table_writer` wrote, one by one. Raises OSError, ValueError and csv.Error."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            yield {name: cell_text(cell or "") for name, cell in row.items() if name is not None}


def safe_cell(text: str) -> str:
    """A cell that no spreadsheet runs; what is no text in it (half of a surrogate pair) is written as an escape."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if text.startswith(_UNSAFE) else text


def cell_text(cell: str) -> str:
    """The inverse of safe_cell; other cells stay as they are."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_UNSAFE) else cell
