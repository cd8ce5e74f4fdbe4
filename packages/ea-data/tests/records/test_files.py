"""files.csv: what became of each raw file."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ea_data.records.files import COLUMNS, file_table, skipped_of
from ea_data.records.record import empty_record

CLIP = {"codec": "h264", "width": 64, "height": 48, "fps": 24.0, "num_frames": 48, "file_seconds": 20.0}


def decision(name: str, reason: str, verdict: str = "dropped") -> dict[str, Any]:
    return {"filter": name, "verdict": verdict, "reason": reason}


def record(source: str, start: float, end: float, status: str = "ok", **more: Any) -> dict[str, Any]:
    file = f"clips/{start}.mp4" if status == "ok" else None
    return {
        **empty_record(source),
        **CLIP,
        "start": start,
        "end": end,
        "status": status,
        "file": file,
        **more,
    }


def table(folder: Path, records: Iterable[dict[str, Any]], skipped: Any = ()) -> dict[str, dict[str, str]]:
    records = list(records)
    with file_table(folder, skipped) as told:
        assert list(told(iter(records))) == records
    with (folder / "files.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(list(row) == list(COLUMNS) for row in rows)
    return {row["source"]: row for row in rows}


def test_every_fate(tmp_path: Path) -> None:
    lost = [
        {"start": 0.0, "end": 1.5, "reason": "too short"},
        {"start": 5.0, "end": 5.5, "reason": "transition"},
    ]
    cuts = [{"start": 1.5, "end": 1.5}, {"start": 5.0, "end": 5.5}]
    found = {"num_cuts": 2, "longest_scene": 3.5}
    nothing = {"num_frames": 0}
    text = [decision("motion", "fine", "kept"), decision("text-area", "text covers 5%")]
    rows = [
        record("a.mp4", 1.5, 5.0, **found, cuts=cuts, lost=lost),
        record("a.mp4", 5.5, 9.0, "dropped", **found, decisions=text),
        record("a.mp4", 9.0, 13.0, "error", **found, error="dis: no"),
        record("b.mp4", 0, 3, "dropped", decisions=text),
        record("c.mp4", 0, 0, "error", **nothing, error="source: it is empty", codec="", file_seconds=0.0),
        record(
            "=d.mp4",
            0,
            20,
            "dropped",
            **nothing,
            decisions=[decision("source", "the same contents as a.mp4")],
        ),
        record(
            "e.mp4", 0, 20, "dropped", **nothing, decisions=[decision("split", "its longest scene is 2 s")]
        ),
        record("f.mp4", 0, 3, "transient", error="caption: away"),
        record("g.mp4", 0, 3, file=None),
        record("h.png", 0, 0, is_picture=True, num_frames=1, codec="png", fps=0.0, file_seconds=0.0),
    ]
    told = table(tmp_path, rows, [("notes.txt", "no video"), ("bad\udcff", "no text")])
    fates = {source: row["status"] for source, row in told.items()}
    assert fates == {
        "a.mp4": "kept",
        "b.mp4": "dropped",
        "c.mp4": "error",
        "'=d.mp4": "duplicate",
        "e.mp4": "dropped",
        "f.mp4": "to retry",
        "g.mp4": "to write",
        "h.png": "kept",
        "notes.txt": "skipped",
        "bad\\udcff": "skipped",
    }
    first = told["a.mp4"]
    assert [first[name] for name in ("kind", "codec", "width", "height", "fps", "seconds")] == [
        *("video", "h264", "64", "48", "24", "20.000")
    ]
    assert (first["clips"], first["clips_kept"], first["cuts"], first["longest_scene"]) == (
        "3",
        "1",
        "2",
        "3.500",
    )
    assert (first["seconds_kept"], first["seconds_dropped"], first["seconds_lost"]) == (
        "3.500",
        "3.500",
        "2.000",
    )
    assert first["lost"] == "0.00-1.50 too short; 5.00-5.50 transition"
    assert first["cut_times"] == "1.50; 5.00-5.50"
    assert first["reason"] == "text-area dropped 1; 1 errors; dis: no"
    reasons = [told[name]["reason"] for name in ("b.mp4", "c.mp4", "'=d.mp4", "e.mp4", "f.mp4", "g.mp4")]
    assert reasons == [
        *("text covers 5%", "source: it is empty", "the same contents as a.mp4", "its longest scene is 2 s"),
        *("caption: away", ""),
    ]
    assert (told["c.mp4"]["kind"], told["c.mp4"]["width"], told["h.png"]["kind"]) == ("", "", "picture")
    assert dict(skipped_of(tmp_path)) == {"notes.txt": "no video", "bad\\udcff": "no text"}


def test_long_lists_fit_a_cell(tmp_path: Path) -> None:
    cuts = [{"start": float(i), "end": float(i)} for i in range(10_000)]
    cell = table(tmp_path, [record("a.mp4", 0, 3, cuts=cuts, num_cuts=len(cuts))])["a.mp4"]["cut_times"]
    shown = cell.split("; ")
    assert len(cell) < 32_767
    assert shown[-1] == f"and {10_000 - len(shown) + 1} more"
    assert shown[-2] == f"{len(shown) - 2}.00"


def test_an_error_leaves_the_old_table(tmp_path: Path) -> None:
    table(tmp_path, [record("a.mp4", 0, 3)])
    before = (tmp_path / "files.csv").read_bytes()
    with pytest.raises(RuntimeError), file_table(tmp_path, []):
        raise RuntimeError
    assert (tmp_path / "files.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["files.csv"]
