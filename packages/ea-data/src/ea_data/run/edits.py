"""Edited captions: written over a finished set's, and kept in its ledger, where they win over the captioner's.

A later `ea data run`, `filter` or `caption` writes them again, until `reset` removes them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ea_data.caption.words import tidy
from ea_data.records import store
from ea_data.records.full_disk import told_if_full
from ea_data.records.ledger import Ledger
from ea_data.records.tables import table_writer
from ea_data.run.caption_list import COLUMNS, Line
from ea_runtime.errors import UserError
from ea_runtime.files.atomic import remove_partials

#: Stage and version of an edited caption in the ledger; the value is a Caption, or None once it is removed.
_KEY = ("edited caption", "1")
_MODEL = "edited"
#: What a clip of a set may be for the import of its caption.
WRITTEN, TO_WRITE, DROPPED = "written", "to write", "dropped"


@dataclass(slots=True)
class Imported:
    """changed: clips with other words than before. empty: written clips without a word now. unlisted: written clips
    that the list does not name, unchanged. to_write: kept clips whose files are not written yet. dropped: clips of
    the list that are dropped now. skipped: lines of the list about no clip of the set."""

    changed: int = 0
    empty: int = 0
    unlisted: int = 0
    to_write: int = 0
    dropped: int = 0
    skipped: int = 0


def edited(entries: dict[tuple[str, str], Any]) -> dict[str, Any] | None:
    """The edited caption among a clip's ledger entries."""
    return entries.get(_KEY)


def state_of(record: dict[str, Any]) -> str:
    """The state of a record for captions: WRITTEN, TO_WRITE, DROPPED, or "" for a file without clip."""
    if not record["num_frames"]:
        return ""
    if record["status"] == "ok":
        return WRITTEN if record["file"] else TO_WRITE
    return TO_WRITE if _lacks_caption(record) else DROPPED


def text_of(record: dict[str, Any]) -> str:
    return (record["caption"] or {}).get("text", "")


def export_captions(folder: Path, output: Path, *, overwrite: bool = False) -> int:
    """Writes the captions of the kept clips, also of those without a file yet. Returns how many.

    Raises UserError if `folder` is no set, or `output` cannot be written or exists (unless `overwrite`).
    """
    if output.exists() and not overwrite:
        raise UserError(
            f"`--output` {str(output)!r} exists, perhaps with edits; import it first, name another file or give "
            "`--overwrite`"
        )

    count = 0
    try:
        with table_writer(output, COLUMNS) as add:
            for record in store.iter_rows(folder):
                if state_of(record) in (WRITTEN, TO_WRITE):
                    place = [record["clip_id"], record["file"] or "", record["source"]]
                    add([*place, *(f"{record[name]:.3f}" for name in ("start", "end")), text_of(record)])
                    count += 1
        return count
    except OSError as error:
        raise UserError(f"`--output` {str(output)!r} cannot be written: {error.strerror or error}") from error


def import_captions(folder: Path, lines: dict[str, Line], *, skip_unknown: bool = False) -> Imported:
    """Gives a set's clips the captions of a list. lines: by clip_id, see caption_list.read.

    The ledger is written first, so after a kill the same call completes. Raises UserError, one line, before anything
    is written: a line about no clip of the set (skip_unknown: they are counted), or whose source is not the clip's.
    """
    with _ledger_of(folder) as ledger:
        found = Imported()
        edits = _check(folder, lines, skip_unknown, found)
        for clip, text in edits.items():
            ledger.put(clip, *_KEY, {"text": text, "model": _MODEL, "prompt_hash": ""})
        ledger.flush()
        _write(folder, edits, found)
    return found


def reset_captions(folder: Path) -> int:
    """Removes all edited captions from the ledger; `ea data caption` then writes the captioner's. Returns how many."""
    with _ledger_of(folder) as ledger:
        count = 0
        for record in store.iter_rows(folder):
            if edited(ledger.get(record["clip_id"])):
                ledger.put(record["clip_id"], *_KEY, None)
                count += 1
    return count


@contextmanager
def _ledger_of(folder: Path) -> Iterator[Ledger]:
    """The ledger of a set, also of one whose ledger was removed. Raises UserError if the folder is no set."""
    next(store.iter_rows(folder), None)
    with told_if_full(folder), Ledger(folder / store.LEDGER) as ledger:
        yield ledger


def _check(folder: Path, lines: dict[str, Line], skip_unknown: bool, found: Imported) -> dict[str, str]:
    """The captions that differ from the set's, by clip_id; counts in `found`."""
    edits, seen = {}, set[str]()
    for record in store.iter_rows(folder):
        state, clip = state_of(record), record["clip_id"]
        line = lines.get(clip) if state else None
        if line is None:
            found.unlisted += state == WRITTEN
            continue
        seen.add(clip)
        if line.source not in (None, record["source"]):
            raise UserError(
                f"{line.where}: names the source {line.source!r}, but the clip is of {record['source']!r}; "
                "were the columns sorted apart? nothing was changed"
            )
        found.to_write += state == TO_WRITE
        found.dropped += state == DROPPED
        text = tidy(line.text)
        if text != tidy(text_of(record)):
            edits[clip] = text
    unknown = [line for clip, line in lines.items() if clip not in seen]
    if unknown and not skip_unknown:
        raise UserError(
            f"{unknown[0].where}: {unknown[0].clip_id!r} is no clip of {str(folder)!r} ({len(unknown)} of "
            f"{len(lines)} rows are of none); nothing was changed: export again, or give `--skip-unknown`"
        )
    found.skipped = len(unknown)
    found.changed = len(edits)
    return edits


def _write(folder: Path, edits: dict[str, str], found: Imported) -> None:
    """Writes records.parquet and dataset.json again, with those captions."""
    remove_partials(folder)
    with closing(store.iter_dataset(folder)) as listed, store.dataset_writer(folder) as add:
        rows = _with_captions(store.iter_rows(folder), edits, listed, add, found, folder)
        store.write_records(folder, rows)


def _with_captions(
    records: Iterable[dict[str, Any]],
    edits: dict[str, str],
    listed: Generator[dict[str, Any]],
    add: Callable[[dict[str, Any]], None],
    found: Imported,
    folder: Path,
) -> Iterator[dict[str, Any]]:
    for record in records:
        text, state = edits.get(record["clip_id"]), state_of(record)
        if state == WRITTEN:
            if text is not None:
                record["caption"] = {"text": text, "model": _MODEL, "prompt_hash": ""}
            entry = next(listed, None)
            if entry is None or entry.get("file_path") != record["file"]:
                raise _unlike(folder)
            entry["text"] = text_of(record)
            found.empty += not entry["text"].strip()
            add(entry)
        yield record
    if next(listed, None) is not None:
        raise _unlike(folder)


def _unlike(folder: Path) -> UserError:
    return UserError(
        f"{str(folder / store.DATASET)!r} does not list the clips of {store.RECORDS} in their order; "
        f"`ea data caption {folder}` writes both again, with the imported captions"
    )


def _lacks_caption(record: dict[str, Any]) -> bool:
    return record["status"] in ("error", "transient") and record["error"].startswith("caption:")
