"""`rapidocr` on drawn clips: overlays are found, textures without letters are no text.

A few clips; benchmarks/test_data_text.py has a hundred of each.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from ea_data.score.text import RapidOcrOptions, RapidOcrScorer

pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")
pytest.importorskip("matplotlib", reason="its fonts draw the letters")

_CASES = (Path(__file__).parents[5] / "shared" / "cases" / "data").resolve()


@pytest.fixture(scope="module")
def scorer() -> RapidOcrScorer:
    return RapidOcrScorer(RapidOcrOptions())


@pytest.mark.parametrize("index", [0, 1, 3, 7])
def test_overlays_are_found(
    drawn_text: ModuleType, scorer: RapidOcrScorer, tmp_path: Path, index: int
) -> None:
    clip = drawn_text.text_clip(0, index, drawn_text.OF_MATPLOTLIB)
    score = drawn_text.score_file(scorer, clip.write(tmp_path / "clip.mp4"))
    assert score.value > 0.002
    assert drawn_text.is_on(score, clip.overlay)


@pytest.mark.parametrize("index", [1, 5, 19])
def test_textures_without_letters_are_no_text(
    drawn_text: ModuleType, scorer: RapidOcrScorer, tmp_path: Path, index: int
) -> None:
    score = drawn_text.score_file(scorer, drawn_text.plain_clip(0, index).write(tmp_path / "clip.mp4"))
    assert score.value == 0, score.detail


@pytest.mark.parametrize("folder", ["no_letters", "one_shot"])
def test_real_clips_without_letters_are_no_text(
    drawn_text: ModuleType, scorer: RapidOcrScorer, folder: str
) -> None:
    if not _CASES.is_dir():
        pytest.skip("the cases of the field are not here")
    for path in sorted((_CASES / folder).iterdir()):
        assert drawn_text.score_file(scorer, path).value == 0, path
