"""Duplicates: recall and precision of the scorer `duplicates` and the filter `duplicate` on pairs of known likeness.

EA_FULL=1 tries 500 pairs, otherwise 40. EA_FIRST: another number gives other pairs. EA_CASES: a folder of real clips
(by default ../shared/cases/data); without it all pairs are drawn.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import duplicate_pairs
import pytest

from ea_data.components import make
from ea_data.media.frames import read_frames
from ea_data.media.probe import probe

COUNT = 500 if os.environ.get("EA_FULL") else 40
FULL = "_full" if os.environ.get("EA_FULL") else ""
FIRST = int(os.environ.get("EA_FIRST", "0"))
REAL = Path(os.environ.get("EA_CASES", Path(__file__).parents[2] / "shared/cases/data"))


def record(path: Path, scorer: Any) -> dict[str, Any]:
    """A clip of a whole file, with its score; the file is removed."""
    info = probe(path, path.parent).info
    frames = read_frames(path, path.parent, 0, info.seconds, float(info.fps), [scorer.needs])
    score = scorer(frames[scorer.needs], {})
    path.unlink()
    names = ("width", "height", "codec", "bits", "is_picture")
    clip = {name: getattr(info, name) for name in names}
    clip |= {"clip_id": path.stem, "source": path.name, "start": 0.0, "end": info.seconds}
    return {**clip, "scores": {"duplicates": {"value": score.value, "detail": score.detail}}}


@pytest.mark.slow
def test_pairs(tmp_path: Path, report: Any) -> None:
    scorer, check = make("scorers", "duplicates"), make("filters", "duplicate")
    real = REAL if REAL.is_dir() else None
    total: Counter[tuple[bool, str]] = Counter()
    found: Counter[tuple[bool, str]] = Counter()
    sizes = []
    for number, pair in enumerate(duplicate_pairs.pairs(COUNT, real, FIRST)):
        clips = [
            record(clip.write(tmp_path, f"{number}{letter}"), scorer)
            for letter, clip in (("a", pair.one), ("b", pair.other))
        ]
        sizes += [len(clip["scores"]["duplicates"]["detail"]["signature"]) for clip in clips]
        _, last = check.judge(sorted(clips, key=check.order))
        total[pair.is_copy, pair.kind] += 1
        found[pair.is_copy, pair.kind] += not last.is_kept
    right = sum(count for (is_copy, _), count in found.items() if is_copy)
    recall = right / sum(count for (is_copy, _), count in total.items() if is_copy)
    precision = right / sum(found.values())
    kinds = {kind: f"{found[is_copy, kind]} of {count}" for (is_copy, kind), count in total.items()}
    figures = {"recall": round(recall, 4), "precision": round(precision, 4), "found": kinds}
    figures |= {"real": real is not None, "bytes": round(sum(sizes) / len(sizes)), "most_bytes": max(sizes)}
    report(f"duplicates{FULL}{FIRST or ''}", figures)
    assert recall >= 0.95
    assert precision >= 0.99
