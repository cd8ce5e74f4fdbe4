"""A prepared set's folder: records.parquet (one row per clip), dataset.json (the kept ones, for training), clips/.

Rows are written and read in groups, so memory does not grow with their number. Every file is written whole or not at
all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ea_data.records.record import from_row, schema, to_row
from ea_runtime.errors import UserError
from ea_runtime.files.atomic import atomic_file

RECORDS, DATASET, CONFIG, SOURCES = "records.parquet", "dataset.json", "config.toml", "sources.json"
CLIPS, LEDGER = "clips", "ledger"
ROWS_A_GROUP = 2048


def iter_rows(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a set, one after another, with the keys of `record.empty_record`.

    Raises UserError if the folder has none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(folder) / RECORDS
    if not path.is_file():
        raise UserError(f"{str(folder)!r} has no {RECORDS}; `ea data run RAW -o {folder}` makes a set")
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_A_GROUP):
                yield from map(from_row, batch.to_pylist())
    except (pa.ArrowException, KeyError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}; `ea data run` makes it again") from error


def read_sources(folder: Path) -> dict[str, Any]:
    """{"found": number of files, "skipped": {why: number}} of the search for raw files. Raises UserError."""
    path = folder / SOURCES
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        skipped = {str(why): int(count) for why, count in table["skipped"].items()}
        return {"found": int(table["found"]), "skipped": skipped}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}; `ea data run` makes it again") from error


def write_records(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes records.parquet; equal records give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    form = schema()
    with (
        _whole_file(folder / RECORDS) as temporary,
        pq.ParquetWriter(temporary, form, compression="zstd") as out,
    ):
        rows = map(to_row, records)
        while group := list(islice(rows, ROWS_A_GROUP)):
            out.write_table(pa.Table.from_pylist(group, schema=form), row_group_size=ROWS_A_GROUP)


def dataset_entry(record: dict[str, Any]) -> dict[str, Any]:
    """A kept clip as in EasyAnimate's JSON, with its number of frames, so that training need not look."""
    return {
        "file_path": record["file"],
        "text": (record["caption"] or {}).get("text", ""),
        "type": "image" if record["is_picture"] else "video",
        **{name: record[name] for name in ("width", "height", "num_frames")},
    }


@contextmanager
def dataset_writer(folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Takes entries one by one; dataset.json is written when the block succeeds."""
    with _whole_file(folder / DATASET) as temporary, temporary.open("w", encoding="utf-8") as file:
        before = "[\n "

        def add(entry: dict[str, Any]) -> None:
            nonlocal before
            file.write(before + json.dumps(entry, ensure_ascii=False))
            before = ",\n "

        yield add
        file.write("[]\n" if before.startswith("[") else "\n]\n")


def iter_dataset(folder: Path) -> Generator[dict[str, Any]]:
    """The entries of dataset.json as `dataset_writer` writes them, one by one. Raises UserError for other forms."""
    path = folder / DATASET
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                entry = line.strip().removesuffix(",")
                if entry not in ("[", "]", "[]"):
                    yield json.loads(entry)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"it is not as `ea data` writes it: {error}"
        raise UserError(
            f"{str(path)!r} cannot be read: {reason}; `ea data caption {folder}` writes it"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a small file, whole or not at all."""
    with _whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    try:
        with atomic_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
