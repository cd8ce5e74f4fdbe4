"""The record of a clip, one row of the store, with its scores, decisions and caption.

A record is a dict, so that filters and captioners of plugins can read it without imports. `path` (absolute) is in it
while the pipeline runs, and is not stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ea_data.protocols import Decision, Score

if TYPE_CHECKING:
    import pyarrow as pa


def clip_id(*parts: Any) -> str:
    """32 hex digits that identify a clip: source content, first and last pts, version of the split."""
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=True)
    return sha256(text.encode()).hexdigest()[:32]


def empty_record(source: str) -> dict[str, Any]:
    """A record of which only the source is known, with every key of the store.

    status: "ok", "dropped", "error" or "transient": no fault of the clip, so the next run tries it again.
    """
    return {
        "clip_id": "",
        "source": source,
        "content": "",
        "start": 0.0,
        "end": 0.0,
        "start_pts": 0,
        "end_pts": 0,
        "time_base": "",
        "start_frame": 0,
        "is_counted": False,
        "fps": 0.0,
        "fps_exact": "0",
        "width": 0,
        "height": 0,
        "num_frames": 0,
        "codec": "",
        "bits": 0,
        "rotation": 0,
        "sample_aspect": "1",
        "is_interlaced": False,
        "combing": 0.0,
        "transfer": "",
        "bars": [0, 0, 0, 0],
        "is_cropped": False,
        "has_alpha": False,
        "num_gaps": 0,
        "longest_gap": 0.0,
        "num_streams": 1,
        "stream": 0,
        "is_animation": False,
        "is_variable_rate": False,
        "is_picture": False,
        "is_whole": False,
        "file_seconds": 0.0,
        "num_cuts": 0,
        "longest_scene": 0.0,
        "cuts": [],
        "lost": [],
        "scores": {},
        "decisions": [],
        "caption": None,
        "status": "ok",
        "error": "",
        "file": None,
        "num_written": 0,
        "luma_error": 0.0,
    }


def score_entry(score: Score) -> dict[str, Any]:
    """A score as the ledger keeps it. Raises ValueError if a number is not finite or the detail is not JSON."""
    if not all(map(math.isfinite, (score.value, *score.values))):
        raise ValueError(f"a score must be finite, got {score.value}")
    values = [float(value) for value in score.values]
    entry = {"value": float(score.value), "values": values, "detail": dict(score.detail)}
    json.dumps(entry, allow_nan=False)
    return entry


def decision_entry(name: str, decision: Decision, version: str) -> dict[str, Any]:
    """A filter's decision as a row keeps it."""
    return {
        "filter": name,
        "verdict": "kept" if decision.is_kept else "dropped",
        "reason": " ".join(decision.reason.split()),
        "threshold": decision.threshold,
        "score": decision.score,
        **{name: _number(getattr(decision, name)) for name in ("value", "minimum", "maximum")},
        "version": version,
    }


def to_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as the store's schema has it: scores as a list in their order, details as JSON text."""
    row = {name: record[name] for name in empty_record("")}
    options: Any = {"separators": (",", ":"), "sort_keys": True, "ensure_ascii": False}
    row["scores"] = [
        {
            **{key: score[key] for key in ("value", "values", "version")},
            "name": name,
            "detail": json.dumps(score["detail"], **options),
        }
        for name, score in record["scores"].items()
    ]
    return row


def from_row(row: dict[str, Any]) -> dict[str, Any]:
    """The inverse of to_row. Columns that an older set lacks have their defaults."""
    scores = {one.pop("name"): {**one, "detail": json.loads(one["detail"])} for one in row["scores"]}
    return {**empty_record(""), **row, "scores": scores}


def schema() -> pa.Schema:
    """The schema of records.parquet."""
    import pyarrow as pa

    text, whole, number, flag = pa.string(), pa.int64(), pa.float64(), pa.bool_()
    score = pa.struct(
        {"name": text, "value": number, "values": pa.list_(number), "detail": text, "version": text}
    )
    words = dict.fromkeys(("filter", "verdict", "reason", "threshold", "score"), text)
    numbers = dict.fromkeys(("value", "minimum", "maximum"), number)
    decision = pa.struct({**words, **numbers, "version": text})
    kinds: dict[type, Any] = {str: text, int: whole, float: number, bool: flag}
    span = {"start": number, "end": number}
    special = {
        "cuts": pa.list_(pa.struct(span)),
        "lost": pa.list_(pa.struct({**span, "reason": text})),
        "scores": pa.list_(score),
        "decisions": pa.list_(decision),
        "caption": pa.struct({"text": text, "model": text, "prompt_hash": text}),
        "file": text,
        "bars": pa.list_(whole),
    }
    columns = empty_record("").items()
    return pa.schema([(name, special.get(name) or kinds[type(value)]) for name, value in columns])


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
