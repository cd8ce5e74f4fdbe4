"""The profile `offline` on drawn raw video: every cut found, every verdict right, of every kind that can be drawn."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ea_data.components import make, missing
from ea_data.draw.raw import KINDS
from ea_data.draw.raw_write import write_raw
from ea_data.media.frames import read_frames
from ea_data.media.probe import timeline_of
from ea_data.profile import AUTO_SPLITTERS, load
from ea_data.protocols import Cut, Frames, Spans, VideoInfo
from ea_data.records.record import empty_record

pytestmark = pytest.mark.slow
pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")

NUM_VIDEOS, FPS = (4 * len(KINDS), 24) if os.environ.get("EA_FULL") else (len(KINDS), 12)


def component(kind: str, table: dict[str, Any]) -> tuple[str, Any]:
    table = dict(table)
    name = table.pop("name")
    return name, make(kind, name, table)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw") / "set"
    write_raw(root, NUM_VIDEOS, seed=0, fps=FPS)
    return root


def truths(root: Path) -> Iterator[tuple[dict[str, Any], Path, VideoInfo]]:
    for line in (root / "truth.jsonl").read_text().splitlines():
        truth = json.loads(line)
        path, fps, count = root / truth["file_path"], truth["fps"], truth["num_frames"]
        yield (
            truth,
            path,
            VideoInfo(path, truth["width"], truth["height"], Fraction(fps), count / fps, count, "h264"),
        )


@pytest.fixture(scope="module")
def found(drawn: Path) -> Callable[[str], dict[str, Spans]]:
    """The spans of each file by a splitter, which reads it once for all tests."""

    @cache
    def spans(name: str) -> dict[str, Spans]:
        split = component("splitters", load("offline")["split"] | {"name": name})[1]
        if missing(split):
            pytest.skip("the extra `shots` is not installed")
        by_file = {path.name: split(path, info) for _, path, info in truths(drawn)}
        assert all(isinstance(one, Spans) for one in by_file.values())
        return by_file

    return spans


@pytest.mark.parametrize("name", AUTO_SPLITTERS)
def test_every_cut_is_found_at_its_frame_and_no_other(
    drawn: Path, found: Callable[[str], dict[str, Spans]], name: str
) -> None:
    for truth, path, _ in truths(drawn):
        spans = found(name)[path.name]
        cuts = [scene["end_frame"] / truth["fps"] for scene in truth["scenes"]][:-1]
        assert list(spans.cuts) == [Cut(pytest.approx(cut), pytest.approx(cut)) for cut in cuts], path.name


@pytest.fixture(scope="module")
def judged(drawn: Path, found: Callable[[str], dict[str, Spans]]) -> list[dict[str, Any]]:
    """One row per clip: the filter that should drop it, the one that does, and its scores."""
    root, profile = drawn, load("offline")
    scorers = [component("scorers", table) for table in profile["score"]]
    filters = [component("filters", table) for table in profile["filter"]]
    rows = []
    for truth, path, _ in truths(root):
        fps, size = truth["fps"], {"width": truth["width"], "height": truth["height"]}
        spans = found(profile["split"]["name"])[path.name]
        timeline = timeline_of(path, root)
        assert len(spans) == sum(
            -(-(scene["end_frame"] - scene["start_frame"]) // (10 * fps))
            for scene in truth["scenes"]
            if scene["dropped_by"] != "split"
        )
        for number, span in enumerate(spans):
            middle = (span.start + span.end) / 2 * fps
            scene = next(s for s in truth["scenes"] if s["start_frame"] <= middle < s["end_frame"])
            row = {
                **empty_record(truth["file_path"]),
                "clip_id": f"{truth['index']:04d}-{number}",
                "start": span.start,
                "end": span.end,
                "fps": fps,
            }
            row |= {**size, "path": str(path), "truth": scene, "kind": truth["kind"], "scores": {}}
            numbers = timeline.window(span.start, span.end, fps)
            row |= {"codec": "h264", "num_frames": len(numbers), "bits": timeline.bits(numbers)}
            frames = read_frames(path, root, span.start, span.end, fps, [one.needs for _, one in scorers])
            for name, scorer in scorers:
                given = frames.get(scorer.needs) or Frames(np.zeros(0), np.zeros(0))
                score = scorer(given, row)
                row["scores"][name] = {"value": score.value, "detail": score.detail}
            verdicts = [(name, check(row)) for name, check in filters if not hasattr(check, "judge")]
            row["dropped_by"] = next((name for name, verdict in verdicts if not verdict.is_kept), "")
            rows.append(row)
    ((name, over_all),) = [pair for pair in filters if hasattr(pair[1], "judge")]
    kept = sorted((row for row in rows if not row["dropped_by"]), key=over_all.order)
    for row, verdict in zip(kept, over_all.judge(kept), strict=True):
        row["dropped_by"] = "" if verdict.is_kept else name
    return rows


def test_every_verdict_is_right(judged: list[dict[str, Any]]) -> None:
    wrong = [
        (row["clip_id"], row["kind"], row["dropped_by"], row["truth"]["dropped_by"])
        for row in judged
        if row["dropped_by"] != row["truth"]["dropped_by"]
    ]
    assert wrong == []
    assert {row["kind"] for row in judged} == set(KINDS)


def test_dis_is_within_a_tenth_of_the_drawn_speed(judged: list[dict[str, Any]]) -> None:
    for row in judged:
        assert row["scores"]["dis"]["value"] == pytest.approx(row["truth"]["speed"], rel=0.1, abs=1e-3), row[
            "kind"
        ]


def test_text_boxes_hold_the_drawn_text(judged: list[dict[str, Any]]) -> None:
    for row in judged:
        if row["truth"]["text"]:
            assert 1 <= row["scores"]["rapidocr"]["value"] / row["truth"]["text_area"] < 3
