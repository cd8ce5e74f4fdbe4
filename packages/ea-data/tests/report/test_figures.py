"""The report's counts, from rows made by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ea_data.protocols import Frames
from ea_data.report.charts import histogram
from ea_data.report.figures import EXAMPLES, FILES_WITH_LOSSES, gather
from ea_data.report.page import page
from ea_data.report.paint import paint
from ea_data.report.summary import summary, to_json
from ea_data.score.motion import DisOptions, DisScorer
from ea_data.score.text import RapidOcrOptions, RapidOcrScorer


def row(number: int, motion: float, status: str | None = None, error: str | None = None) -> dict[str, Any]:
    """A clip of 3 s that the filter `motion` keeps between 2 and 6."""
    is_kept = 2 <= motion <= 6
    decision = {
        "filter": "motion",
        "verdict": "kept" if is_kept else "dropped",
        "reason": "" if is_kept else "too still or wild",
        "threshold": "2 to 6",
        "score": "dis",
        "value": motion,
        "minimum": 2.0,
        "maximum": 6.0,
    }
    return {
        "clip_id": f"{number:04x}",
        "source": f"a<b>/{number}.mp4",
        "start": 1.0,
        "end": 4.0,
        "fps": 12.0,
        "status": status or ("ok" if is_kept else "dropped"),
        "error": error,
        "scores": {} if error else {"dis": {"value": motion, "values": [], "detail": {}, "version": "1"}},
        "decisions": [] if error else [decision],
        "caption": {"text": "a caption", "model": "folder", "prompt_hash": ""}
        if is_kept and not error
        else None,
    }


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    made = [row(i, i / 10) for i in range(100)]
    nothing = {"start": 0.0, "end": 0.0, "num_frames": 0}
    made.append({**row(200, 0, "error", "source: it cannot be read: 'a.mp4' at byte 17"), **nothing})
    made.append({**row(201, 0, "error", "source: it cannot be read: 'b.mp4' at byte 99"), **nothing})
    return made


def test_counts_hours_and_funnel(rows: list[dict[str, Any]]) -> None:
    figures = gather(iter(rows))
    assert figures.by_status == {"dropped": 59, "error": 2, "ok": 41}
    assert [(s.name, s.unit, s.count) for s in figures.funnel()] == [
        ("found", "files", 102),
        ("no error", "files", 100),
        ("clips", "clips", 100),
        ("motion", "clips", 41),
    ]
    assert figures.funnel()[-1].hours == pytest.approx(41 * 3 / 3600)
    assert (figures.num_captions, figures.num_empty) == (41, 0)
    assert (figures.num_clips, figures.num_without) == (100, 2)


def test_what_files_are_is_counted(rows: list[dict[str, Any]]) -> None:
    assert gather(rows).looks == {}
    rows[0] |= {"sample_aspect": "4/3", "is_interlaced": True}
    rows[1] |= {"sample_aspect": "1", "transfer": "hlg", "rotation": 90}
    expected = {"pixels made square": 1, "deinterlaced": 1, "HLG brought to BT.709": 1, "turned upright": 1}
    assert gather(rows).looks == expected
    assert json.loads(to_json(summary(gather(rows))))["looks"] == expected


def test_files_without_a_clip_come_before_the_filters(rows: list[dict[str, Any]]) -> None:
    nothing = {"filter": "split", "verdict": "dropped", "reason": "no scene", "threshold": "", "score": ""}
    numbers = {"value": None, "minimum": None, "maximum": None}
    decisions = {"decisions": [{**nothing, **numbers}], "num_frames": 0}
    rows.append({**row(300, 3.0, "dropped"), **decisions, "file_seconds": 3.0})
    steps = [(s.name, s.count) for s in gather(rows).funnel()]
    assert steps == [("found", 103), ("no error", 101), ("split", 100), ("clips", 100), ("motion", 41)]


def test_seconds_lost_inside_files(rows: list[dict[str, Any]]) -> None:
    """Of files with clips and without; each second leaves the funnel once."""

    def lost(*spans: tuple[float, float, str]) -> list[dict[str, Any]]:
        return [dict(zip(("start", "end", "reason"), span, strict=True)) for span in spans]

    for one in rows:
        one["file_seconds"] = 3.0 if one["error"] is None else 0.0
    found = {"num_cuts": 1, "longest_scene": 4.0, "cuts": [{"start": 4.0, "end": 4.5}]}
    rows[0] |= {"file_seconds": 6.5, "lost": lost((4.0, 4.5, "transition"), (4.5, 7.5, "too short")), **found}
    rows.append({**row(300, 3.0, "dropped"), "start": 0.0, "end": 2.0, "num_frames": 0, "file_seconds": 2.0})
    rows[-1] |= {"lost": lost((0.0, 1.75, "too short")), **found, "cuts": [{"start": 1.0, "end": 1.0}]}
    rows[-1]["decisions"] = [{"filter": "split", "verdict": "dropped", "reason": "its longest scene is 2 s"}]
    figures = gather(rows)
    assert figures.lost_seconds == {"too short": 4.75, "transition": 0.5}
    seconds = {step.name: round(3600 * step.hours, 6) for step in figures.funnel()}
    whole = 99 * 3 + 6.5 + 2
    assert list(seconds.items())[:5] == [
        ("found", whole),
        ("no error", whole),
        ("split", whole - 0.25),
        ("lost: too short", whole - 5),
        ("lost: transition", whole - 5.5),
    ]
    assert seconds["clips"] == 300
    table = summary(figures)
    assert table["seconds_lost"] == {"too short": 4.75, "transition": 0.5}
    assert (table["clips"], table["files_without_clip"], table["rows"]) == (100, 3, 103)
    text = page("a", figures, lambda r: "none", "", {}, timings={"split": 2.0, "decode": 6.0})
    assert "2 files have seconds that are in no clip: too short 4.8 s, transition 0.5 s." in " ".join(
        text.split()
    )
    assert "4.00-4.50 transition; 4.50-7.50 too short</td>" in text
    assert "<td>4.00-4.50</td>" in text
    assert "<td>1.00</td>" in text
    assert ">lost: too short</div>" in text
    assert "8.0 in all" in text
    assert "has the rest" not in text


def test_losses_of_many_files_are_bounded(rows: list[dict[str, Any]]) -> None:
    for number, one in enumerate(rows):
        span = {"start": 0.0, "end": 1.0 + number / 100, "reason": "transition"}
        cuts = [{"start": float(i), "end": float(i)} for i in range(100)]
        one |= {"lost": [span], "cuts": cuts, "file_seconds": 5.0, "longest_scene": 1.0}
    figures = gather(rows)
    assert [one["source"] for one in figures.losses[:2]] == ["a<b>/201.mp4", "a<b>/200.mp4"]
    text = page("a", figures, lambda r: "none", "", {})
    assert f"The {FILES_WITH_LOSSES} that lose most are below" in text
    assert text.count("; and 88 more</td>") == FILES_WITH_LOSSES
    assert "What each stage cost" not in text


def test_like_errors_meet(rows: list[dict[str, Any]]) -> None:
    (group,) = gather(rows).errors
    assert (group.count, group.stage) == (2, "source")
    assert group.reason == "it cannot be read: '...' at byte N"
    assert group.sources == ["a<b>/200.mp4", "a<b>/201.mp4"]


def test_nearest_are_those_at_the_limits(rows: list[dict[str, Any]]) -> None:
    (part,) = gather(rows).filters
    near = [r["scores"]["dis"]["value"] for r in part.nearest.rows()]
    assert len(near) == EXAMPLES
    assert sorted(near) == pytest.approx([1.8, 1.9, 2.0, 2.1, 5.9, 6.0, 6.1, 6.2])
    assert len(part.kept.rows()) == len(part.dropped.rows()) == EXAMPLES


def test_the_order_of_rows_changes_nothing(rows: list[dict[str, Any]]) -> None:
    one, other = gather(rows), gather(reversed(rows))
    assert to_json(summary(one)) == to_json(summary(other))
    assert [r["clip_id"] for r in one.filters[0].kept.rows()] == [
        r["clip_id"] for r in other.filters[0].kept.rows()
    ]


def test_summary_is_json_without_nan(rows: list[dict[str, Any]]) -> None:
    table = json.loads(to_json(summary(gather(rows))))
    assert table["filters"][0]["kept"] == 41
    assert table["filters"][0]["quantiles"]["0.5"] == pytest.approx(4.95, abs=1e-4)
    assert table["funnel"][-1] == {"step": "motion", "clips": 41, "hours": pytest.approx(0.0341667)}


def test_histogram_bars_add_up_and_limits_stand(rows: list[dict[str, Any]]) -> None:
    import re

    (part,) = gather(rows).filters
    svg = histogram(part)
    bars = re.findall(r"([\d,]+) (kept|dropped)</title>", svg)
    totals = {name: sum(int(n) for n, kind in bars if kind == name) for name in ("kept", "dropped")}
    assert totals == {"kept": 41, "dropped": 59}
    assert svg.count('<line class="limit"') == 2


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [float("nan"), 3.0], [1e-9, 1e9], [-5.0, 5.0]])
def test_histogram_of_odd_values(values: list[float]) -> None:
    (part,) = gather([row(i, v) for i, v in enumerate(values)]).filters
    assert "<svg" in histogram(part)


def test_page_is_one_file_and_escapes(rows: list[dict[str, Any]]) -> None:
    rows[0]["source"] = "<script>alert(1)</script>.mp4"
    rows[0]["scores"]["dis"]["value"] = 0.0
    detail = {"frames": [], "samples": 20, "text": "SALE <b>"}
    for one in rows[:100]:
        one["scores"]["rapidocr"] = {"value": 0.1, "values": [], "version": "2", "detail": detail}
    text = page("a & b", gather(rows), lambda r: "no <picture>", "[run]\nraw = '<x>'", {"ea-data": "1"})
    assert "<script" not in text
    assert "src=" not in text
    assert "http" not in text
    assert "a &amp; b" in text
    assert "text: SALE &lt;b&gt;" in text


def test_paint_draws_what_the_scorers_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from PIL import Image

    frames = np.full((4, 40, 60, 3), 128, np.uint8)
    box = np.array([[6, 4], [36, 4], [36, 20], [6, 20]])
    reader = RapidOcrScorer(RapidOcrOptions(read=False))
    monkeypatch.setattr(
        reader, "detect", lambda frame: np.array([box] if frame[0, 0, 0] else np.zeros((0, 4, 2)))
    )
    looked = np.zeros((2, 40, 60, 3), np.uint8)
    looked[1] = 1  # text in the second frame
    text = reader(Frames(looked, np.array([0.0, 1.0])), {})
    noise = np.random.default_rng(0).integers(0, 255, (80, 120), np.uint8)
    moving = np.stack([noise, noise, np.roll(noise, 4, 1)])
    motion = DisScorer(DisOptions())(Frames(moving, np.array([0.0, 3.0, 3.25])), {})
    assert motion.detail["flow"]["second"] == 3.0
    assert np.median(motion.detail["flow"]["vectors"], axis=0) == pytest.approx([4 / 120, 0], abs=0.005)
    plain = {"scores": {}}
    marked = {"scores": {"rapidocr": {"detail": text.detail}, "dis": {"detail": motion.detail}}}
    seconds = [0.0, 1.0, 2.0, 3.0]
    before, after = (
        np.asarray(Image.open(io.BytesIO(paint(frames, seconds, r)))).astype(int) for r in (plain, marked)
    )
    changed = np.abs(before - after).max(-1) > 40
    h, w = changed.shape
    quarters = {
        (i, j): changed[i * h // 2 : (i + 1) * h // 2, j * w // 2 : (j + 1) * w // 2].any()
        for i in (0, 1)
        for j in (0, 1)
    }
    assert quarters == {(0, 0): False, (0, 1): True, (1, 0): False, (1, 1): True}  # frames 1 and 3
