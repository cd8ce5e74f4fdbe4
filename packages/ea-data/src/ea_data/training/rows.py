"""Reads the rows of a list: JSON, JSON lines, or CSV with commas, semicolons, tabs or bars."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote, quote_path
from ea_runtime.files.texts import lines_of, read_text

#: Suffix of a list -> its kind. A .json file may hold JSON lines.
KINDS = {".json": "JSON", ".csv": "CSV", ".tsv": "CSV", ".jsonl": "JSON lines", ".ndjson": "JSON lines"}
#: Columns without which a CSV is no list.
NEEDED = ("file_path", "text")
_SEPARATORS = ",;\t|"
_BETWEEN = re.compile(r"[\s,]*")


class Rows:
    """The rows of a list in order, as JSON or CSV has them: values of any type, unless somebody checks them.

    Raises UserError, one line, if the file cannot be read or is not of its suffix's kind. `where`: the file and
    place of the row that came last, for errors: "entry 0 of 'list.csv', line 2". needed: columns of a CSV.
    """

    def __init__(self, file: Path, needed: tuple[str, ...] = NEEDED) -> None:
        self.file, self._needed = file, needed
        self._number, self._line = -1, 0

    def __iter__(self) -> Iterator[Any]:
        kind = KINDS[self.file.suffix.lower()]
        name = quote_path(self.file)
        try:
            text = read_text(self.file)
            if kind == "JSON" and _is_lines(text):
                kind = "JSON lines"
            read = {"CSV": self._csv, "JSON": self._json, "JSON lines": self._json_lines}[kind]
            for number, row in enumerate(read(text)):
                self._number = number
                yield row
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
        except UserError:
            raise
        except (csv.Error, ValueError, RecursionError) as error:
            raise UserError(f"{name} is not valid {kind}: {error}") from error

    @property
    def where(self) -> str:
        line = self._line or _line_of_entry(read_text(self.file), self._number)
        return f"entry {self._number} of {quote_path(self.file)}, line {line}"

    def _json(self, text: str) -> Iterator[Any]:
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise UserError(f"{quote_path(self.file)} must be a list of entries, got {type(rows).__name__}")
        yield from rows

    def _json_lines(self, text: str) -> Iterator[Any]:
        for self._line, line in enumerate(lines_of(text), 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {self._line}: {error}") from None

    def _csv(self, text: str) -> Iterator[dict[str, str]]:
        names, separator = self._header(text)
        # strict: a quotation mark that is never closed would swallow the rest of the file
        lines = csv.reader(
            StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
        )
        next(lines)
        while True:
            self._line = lines.line_num + 1
            try:
                row = next(lines, None)
            except csv.Error as error:
                raise ValueError(f"line {self._line}: {error}; check its quotation marks") from None
            if row is None:
                return
            while len(row) > len(names) and not row[-1].strip():
                row.pop()  # a spreadsheet's empty columns
            if len(row) > len(names):
                raise UserError(
                    f"{quote_path(self.file)}, line {self._line}: has {len(row)} columns, but the header has "
                    f"{len(names)}; put a text that contains {quote(separator)} between double quotes"
                )
            if any(cell.strip() for cell in row):
                yield dict(zip(names, row, strict=False))

    def _header(self, text: str) -> tuple[list[str], str]:
        """The names of the columns, and the separator with which the needed ones are there."""
        for separator in _SEPARATORS:
            first = csv.reader(StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
            names = [name.strip() for name in next(first, [])]
            if set(self._needed) <= set(names):
                twice = [name for name in self._needed if names.count(name) > 1]
                if twice:
                    raise UserError(
                        f"{quote_path(self.file)}, line 1: has the column {twice[0]!r} twice; remove one"
                    )
                return names, separator
        got = next(iter(lines_of(text)), "")
        columns = " and ".join(self._needed)
        raise UserError(
            f"{quote_path(self.file)}, line 1: must name the columns {columns}, separated by commas, "
            f"semicolons, tabs or bars, got {quote(got)}"
        )


def _is_lines(text: str) -> bool:
    """True if a .json file holds an object on its first line, and more after it."""
    lines = [line for line in lines_of(text) if line.strip()]
    if len(lines) < 2 or not lines[0].startswith("{"):
        return False
    try:
        json.loads(lines[0])
    except ValueError:
        return False
    return True


def _line_of_entry(text: str, number: int) -> int:
    """The line of an entry of a valid JSON list."""
    decoder, place, start = json.JSONDecoder(), text.index("[") + 1, 0
    for _ in range(number + 1):
        between = _BETWEEN.match(text, place)
        assert between is not None
        start = between.end()
        place = decoder.raw_decode(text, start)[1]
    return text.count("\n", 0, start) + 1
