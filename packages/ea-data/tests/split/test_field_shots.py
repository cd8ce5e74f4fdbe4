"""Real files of one shot each give one clip each; drawn twins are in test_adaptive.py and test_transnet.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from ea_data.components import make, missing
from ea_data.media.probe import probe
from ea_data.profile import AUTO_SPLITTERS
from ea_data.protocols import Cut, Spans

FOLDER = (Path(__file__).parents[5] / "shared" / "cases" / "data").resolve()
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the field cases are not here: {FOLDER}")
SINGLE = ["one_shot/ea1.mp4", "no_letters/flower.webm", "no_letters/frog.mp4", "interlaced/interlaced.mp4"]


def split(name: str, file: str) -> Spans:
    splitter = make("splitters", name)
    if missing(splitter):
        pytest.skip("the extra `shots` is not installed")
    spans = splitter(FOLDER / file, probe(FOLDER / file, FOLDER).info)
    assert isinstance(spans, Spans)
    return spans


@pytest.mark.parametrize("name", AUTO_SPLITTERS)
@pytest.mark.parametrize("file", SINGLE)
def test_one_shot_is_one_clip(name: str, file: str) -> None:
    spans = split(name, file)
    assert (len(spans), spans.cuts, spans.lost) == (1, (), ())


@pytest.mark.parametrize("name", AUTO_SPLITTERS)
def test_three_scenes_are_cut_at_their_first_frames(name: str) -> None:
    cuts = split(name, "avi_next_scene/three_scenes.avi").cuts
    assert cuts == (
        Cut(pytest.approx(96 / 24), pytest.approx(4)),
        Cut(pytest.approx(192 / 24), pytest.approx(8)),
    )
