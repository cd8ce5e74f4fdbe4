"""Records of raw files: what the probe and the split found, before there are clips."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from ea_data.protocols import Decision
from ea_data.records.record import clip_id, decision_entry, empty_record

#: Findings of the probe that a record has as they are.
_PROBED = (
    *("content", "width", "height", "fps_exact", "codec", "rotation", "is_variable_rate", "is_picture"),
    *("sample_aspect", "is_interlaced", "combing", "transfer", "bars", "is_cropped", "has_alpha", "num_gaps"),
    *("longest_gap", "num_streams", "stream", "is_animation", "bits"),
)


def record_of_file(source: str, probed: dict[str, Any]) -> dict[str, Any]:
    """A record with the findings of the probe."""
    return {
        **empty_record(source),
        "clip_id": clip_id("file", source),
        **{name: probed[name] for name in _PROBED},
        "fps": float(Fraction(probed["fps_exact"])),
        "end": float(probed["seconds"]),
        "file_seconds": float(probed["seconds"]),
    }


def findings_of_split(split: dict[str, Any]) -> dict[str, Any]:
    """Findings of a split in a file, for its first record; an entry of an older version may lack it."""
    cuts, lost = split.get("cuts", []), split.get("lost", [])
    return {
        "num_cuts": len(cuts),
        "longest_scene": float(split.get("longest_scene", 0.0)),
        "cuts": [dict(zip(("start", "end"), cut, strict=True)) for cut in cuts],
        "lost": [dict(zip(("start", "end", "reason"), one, strict=True)) for one in lost],
    }


def dropped_file(record: dict[str, Any], stage: str, reason: str) -> dict[str, Any]:
    """The record of a file without clips, for a reason that is no error."""
    decision = decision_entry(stage, Decision(False, reason), "")
    return {**record, "num_frames": 0, "status": "dropped", "decisions": [decision]}
