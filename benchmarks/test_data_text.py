"""The scorer `rapidocr` on a hundred drawn clips with an overlay and a hundred textures without letters.

    uv run pytest benchmarks/test_data_text.py

EA_TEXT=20 takes the first twenty of each.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "ea-data" / "tests"))
NUM_CLIPS = int(os.environ.get("EA_TEXT", "100"))
LIMIT = 0.002  # of the profile `offline`


def shares(found: Counter[str], seen: Iterable[str]) -> dict[str, str]:
    return {name: f"{found[name]} of {count}" for name, count in sorted(Counter(seen).items())}


def size_of(overlay: Any, height: int, width: int) -> str:
    share = 100 * overlay.size / min(height, width)
    return next(f"under {limit}%" for limit in (5, 7, 10, 100) if share < limit)


@pytest.mark.slow
def test_overlays_are_found_and_textures_are_not(tmp_path: Path, report: Any) -> None:
    import text_for_tests as drawn

    from ea_data.score.text import RapidOcrOptions, RapidOcrScorer

    scorer = RapidOcrScorer(RapidOcrOptions())
    scripts = tuple(name for name in drawn.WORDS if drawn.can_draw(name))
    kinds, seen, found, missed, areas = [], [], Counter[str](), [], []
    looks, seconds = [], 0.0

    def score(clip: Any) -> Any:
        nonlocal seconds
        path = clip.write(tmp_path / "clip.mp4")
        began = time.process_time()
        result = drawn.score_file(scorer, path)
        seconds += time.process_time() - began
        looks.append(len(result.values))
        return result

    for index in range(NUM_CLIPS):
        clip = drawn.text_clip(0, index, scripts)
        overlay = clip.overlay
        length = "whole" if overlay.end - overlay.start >= clip.seconds else "1 to 3 s"
        ground = "moving things" if clip.ground in drawn.PLAIN else "texture"
        kinds = [overlay.script, overlay.style, size_of(overlay, clip.height, clip.width), length, ground]
        seen.append(kinds)
        result = score(clip)
        if result.value > LIMIT and drawn.is_on(result, overlay):
            found.update(kinds)
            areas.append(result.value)
        else:
            missed.append(f"{index}: {overlay.script}, {overlay.style}, {clip.ground}, {overlay.text}")
            print(missed[-1], flush=True)
    false = []
    for index in range(NUM_CLIPS):
        clip = drawn.plain_clip(0, index)
        result = score(clip)
        if result.value > 0:
            false.append(f"{index}: {clip.ground}, {result.value}, {result.detail['text']}")
            print(false[-1], flush=True)
    names = ("scripts", "styles", "sizes", "durations", "grounds")
    figures = {
        "found": f"{len(areas)} of {len(seen)}",
        "false": f"{len(false)} of {NUM_CLIPS}",
        "smallest area": min(areas),
        "looks a clip": round(sum(looks) / len(looks), 2),
        "seconds a clip, with decoding": round(seconds / len(looks), 2),
        **{name: shares(found, column) for name, column in zip(names, zip(*seen, strict=True), strict=True)},
        "missed": missed,
        "false clips": false,
    }
    report("data_text", figures)
    assert len(areas) >= 0.95 * len(seen)
    assert len(false) <= 1
