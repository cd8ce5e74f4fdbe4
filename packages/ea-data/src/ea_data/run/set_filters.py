"""Applies filters that need the other clips too: they see the kept records in their own order, one at a time.

Records are sorted on disk, so memory does not grow with the number of clips (except for the filter's own).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from ea_data.profile import Part
from ea_data.records.record import decision_entry
from ea_data.run.scratch import Scratch, Spool
from ea_runtime.errors import UserError


def apply_set_filters(records: Spool, parts: list[Part], scratch: Scratch) -> Iterator[dict[str, Any]]:
    """All records in their order, the kept ones with the decisions of these filters.

    Raises UserError, one line, if a filter fails: its verdicts depend on each other, so there are none.
    """
    for part in parts:
        decided = _decided(records, parts, scratch)
        _judge_all((record for record in decided if record["status"] == "ok"), part, scratch)
    yield from _decided(records, parts, scratch)


def _decided(records: Spool, parts: list[Part], scratch: Scratch) -> Iterator[dict[str, Any]]:
    """All records, the kept ones with the decisions that there are by now."""
    for record in records:
        if record["status"] == "ok":
            _add_decisions(record, parts, scratch)
        yield record


def _add_decisions(record: dict[str, Any], parts: list[Part], scratch: Scratch) -> None:
    for part in parts:
        text = scratch.get(f"decision {part.name}", record["clip_id"])
        if text is None:
            return
        decision = json.loads(text)
        record["decisions"].append(decision)
        if decision["verdict"] == "dropped":
            record["status"] = "dropped"
            return


def _judge_all(records: Iterable[dict[str, Any]], part: Part, scratch: Scratch) -> None:
    component, database = part.component, scratch.database
    if hasattr(component, "work_in"):
        component.work_in(scratch.folder)
    database.execute("DROP TABLE IF EXISTS ordered")
    columns = ""
    for record in records:
        keys = tuple(component.order(record))
        if not columns:
            columns = ", ".join(f"k{number}" for number in range(len(keys)))
            database.execute(f"CREATE TABLE ordered ({columns}, record TEXT)")
        marks = ", ".join("?" * (len(keys) + 1))
        text = json.dumps(record, separators=(",", ":"))
        database.execute(f"INSERT INTO ordered VALUES ({marks})", (*keys, text))
    if not columns:
        return

    def ordered() -> Iterator[dict[str, Any]]:
        # numbers by size and text by code point, as Python sorts them
        for (text,) in database.execute(f"SELECT record FROM ordered ORDER BY {columns}"):
            yield json.loads(text)

    ids = (record["clip_id"] for record in ordered())
    try:
        for clip, decision in zip(ids, component.judge(ordered()), strict=True):
            entry = decision_entry(part.name, decision, part.shown_version)
            scratch.put(f"decision {part.name}", clip, json.dumps(entry))
    except UserError:
        raise
    # a plugin's filter may raise anything
    except Exception as error:
        raise UserError(f"the filter {part.name!r} failed: {type(error).__name__}: {error}") from error
