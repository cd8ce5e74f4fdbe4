"""`rapidocr` on drawn clips: overlays are found, textures without letters are not text.

A few clips by default. All of them, with the tables of docs/data.md:

    EA_FULL=1 uv run pytest -n 0 -s packages/ea-data/tests/score/test_text_drawn.py
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ea_data.media.frames import read_frames
from ea_data.media.probe import probe
from ea_data.protocols import Score
from ea_data.score.text import RapidOcrOptions, RapidOcrScorer

pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")
pytest.importorskip("matplotlib", reason="its fonts draw the letters")

FULL = bool(os.environ.get("EA_FULL"))
LIMIT = 0.002  # of the profile `offline`
_FILE = Path(__file__).parents[1] / "text_for_tests.py"
_CASES = Path(__file__).parents[5] / "shared" / "cases" / "data"


@pytest.fixture(scope="module")
def drawn() -> ModuleType:
    """The module text_for_tests.py."""
    spec = spec_from_file_location(_FILE.stem, _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(_FILE.stem, module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scorer() -> RapidOcrScorer:
    return RapidOcrScorer(RapidOcrOptions())


def score_file(scorer: RapidOcrScorer, path: Path) -> Score:
    """The score of the first ten seconds of a file, decoded as the pipeline does."""
    info = probe(path, path.parent).info
    span = (0.0, min(10.0, info.seconds), float(info.fps))
    frames = read_frames(path, path.parent, *span, [scorer.needs])[scorer.needs]
    return scorer(frames, {})


def tell(title: str, found: Counter[str], seen: Iterable[str]) -> None:
    rows = Counter(seen)
    print(f"\n{title}: " + ", ".join(f"{name} {found[name]} of {count}" for name, count in rows.items()))


def test_overlays_are_found(
    drawn: ModuleType, scorer: RapidOcrScorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indices: Iterable[int] = range(100) if FULL else (0, 3, 6, 11, 12)
    scripts = tuple(name for name in drawn.WORDS if drawn.can_draw(name)) if FULL else drawn.OF_MATPLOTLIB
    clips = [drawn.text_clip(0, index, scripts) for index in indices]
    found: Counter[str] = Counter()
    looks, missed, seconds = [], [], 0.0
    for number, clip in enumerate(clips):
        path = clip.write(tmp_path / f"{number}.mp4")
        began = time.process_time()
        score = score_file(scorer, path)
        seconds += time.process_time() - began
        looks.append(len(score.values))
        overlay = clip.overlay
        if score.value > LIMIT and _is_on(score, overlay):
            found.update([overlay.script, overlay.style, clip.ground, "all"])
        else:
            missed.append((number, overlay.script, overlay.style, clip.ground, overlay.text))
    if FULL:
        with capsys.disabled():
            tell("all", found, ["all"] * len(clips))
            tell("scripts", found, (clip.overlay.script for clip in clips))
            tell("styles", found, (clip.overlay.style for clip in clips))
            tell("grounds", found, sorted(clip.ground for clip in clips))
            print(
                f"looks {sum(looks) / len(looks):.2f} of a clip, {seconds / len(clips):.2f} s with decoding"
            )
            print(*missed, sep="\n")
    assert found["all"] >= 0.95 * len(clips), missed


def test_textures_without_letters_are_no_text(
    drawn: ModuleType, scorer: RapidOcrScorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indices: Iterable[int] = range(100) if FULL else (1, 5, 12, 19)
    false, looks = [], []
    for index in indices:
        clip = drawn.plain_clip(0, index)
        score = score_file(scorer, clip.write(tmp_path / f"{index}.mp4"))
        looks.append(len(score.values))
        if score.value > 0:
            false.append((index, clip.ground, score.value, score.detail["text"]))
    if FULL:
        with capsys.disabled():
            print(
                f"\nfalse {len(false)} of {len(looks)}, looks {sum(looks) / len(looks):.2f} of a clip", *false
            )
    assert len(false) <= (1 if FULL else 0), false


@pytest.mark.skipif(not _CASES.is_dir(), reason="the cases of the field are not here")
def test_real_clips_without_letters_are_no_text(scorer: RapidOcrScorer) -> None:
    names = ["no_letters/*", "one_shot/*", *(["*/*.mp4", "*/*.webm", "*/*.mkv", "*/*.avi"] if FULL else [])]
    for path in sorted({path for name in names for path in _CASES.glob(name)}):
        assert score_file(scorer, path).value == 0, path


def _is_on(score: Score, overlay: Any) -> bool:
    """Whether a box that counts is at the height of the overlay, in a frame in which it is shown."""
    shown = [one for one in score.detail["frames"] if overlay.start <= one["second"] < overlay.end]
    places = [sum(y for _, y in box) / 4 for one in shown for box in one["boxes"]]
    return any(abs(place - overlay.y) < 0.12 for place in places)
