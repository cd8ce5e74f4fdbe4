"""One row a clip: what the store holds, and how scores, decisions and captions look in it.

A record is a dict, so that filters and captioners of plugins can read it without importing anything. `path` (absolute)
is there while the pipeline runs and is not stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from ea_data.protocols import Caption, Decision, Score

if TYPE_CHECKING:
    import pyarrow as pa

Status = Literal["ok", "dropped", "error", "transient"]
#: "transient": nothing that is wrong with the clip; the next run tries it again.
STATUSES: tuple[Status, ...] = ("ok", "dropped", "error", "transient")


def clip_id(*parts: Any) -> str:
    """32 hex digits of what makes a clip itself: source content, first and last pts, split contract."""
    text = json.dumps(parts, separators=(",", ":"), ensure_ascii=True)
    return sha256(text.encode()).hexdigest()[:32]


def empty_record(source: str) -> dict[str, Any]:
    """A record of which nothing but the source is known. Every key that the store has is in it."""
    return {
        "clip_id": "",
        "source": source,
        "content": "",
        "start": 0.0,
        "end": 0.0,
        "start_pts": 0,
        "end_pts": 0,
        "time_base": "",
        "fps": 0.0,
        "fps_exact": "0",
        "width": 0,
        "height": 0,
        "num_frames": 0,
        "codec": "",
        "rotation": 0,
        "is_variable_rate": False,
        "is_picture": False,
        "is_whole": False,
        "scores": {},
        "decisions": [],
        "caption": None,
        "status": "ok",
        "error": "",
        "file": None,
    }


def score_entry(score: Score) -> dict[str, Any]:
    """A score as the ledger keeps it. Raises ValueError where a number is not finite or the detail is no JSON."""
    if not all(map(math.isfinite, (score.value, *score.values))):
        raise ValueError(f"a score must be finite, got {score.value}")
    entry = {
        "value": float(score.value),
        "values": [float(value) for value in score.values],
        "detail": dict(score.detail),
    }
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
        "value": _number(decision.value),
        "minimum": _number(decision.minimum),
        "maximum": _number(decision.maximum),
        "version": version,
    }


def caption_entry(caption: Caption) -> dict[str, Any]:
    """A caption as ledger and row keep it."""
    return {"text": caption.text, "model": caption.model, "prompt_hash": caption.prompt_hash}


def to_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as the store's schema has it: scores as a list in their order, details as JSON text."""
    row = {name: record[name] for name in empty_record("")}
    row["scores"] = [
        {
            "name": name,
            "value": score["value"],
            "values": score["values"],
            "detail": json.dumps(score["detail"], separators=(",", ":"), sort_keys=True, ensure_ascii=False),
            "version": score["version"],
        }
        for name, score in record["scores"].items()
    ]
    return row


def from_row(row: dict[str, Any]) -> dict[str, Any]:
    """The inverse of to_row."""
    scores = {}
    for score in row["scores"]:
        name = score.pop("name")
        scores[name] = {**score, "detail": json.loads(score["detail"])}
    return {**row, "scores": scores}


def schema() -> pa.Schema:
    """Of records.parquet."""
    import pyarrow as pa

    text, whole, number, flag = pa.string(), pa.int64(), pa.float64(), pa.bool_()
    score = pa.struct(
        {"name": text, "value": number, "values": pa.list_(number), "detail": text, "version": text}
    )
    decision = pa.struct(
        {
            **dict.fromkeys(("filter", "verdict", "reason", "threshold", "score"), text),
            **dict.fromkeys(("value", "minimum", "maximum"), number),
            "version": text,
        }
    )
    kinds: dict[type, Any] = {str: text, int: whole, float: number, bool: flag}
    special = {
        "scores": pa.list_(score),
        "decisions": pa.list_(decision),
        "caption": pa.struct({"text": text, "model": text, "prompt_hash": text}),
        "file": text,
    }
    return pa.schema(
        [(name, special.get(name) or kinds[type(value)]) for name, value in empty_record("").items()]
    )


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
