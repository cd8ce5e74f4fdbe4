"""`rapidocr`: areas are unions of boxes, and drawn text is found."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ea_data.draw.raw import RawScene, render_scene, sample_video
from ea_data.protocols import Frames
from ea_data.score import text
from ea_data.score.text import RapidOcrOptions, RapidOcrScorer, union_area
from ea_runtime.errors import MissingPackageError

needs_ocr = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr") is None or importlib.util.find_spec("onnxruntime") is None,
    reason="the extra `ocr` is not installed",
)


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([], 0),
        ([box(10, 10, 30, 20)], 200),
        ([box(10, 10, 30, 20), box(50, 50, 60, 60)], 300),
        ([box(10, 10, 30, 20), box(20, 10, 40, 20)], 300),  # overlapping
        ([box(10, 10, 30, 20), box(12, 12, 20, 18)], 200),  # one within the other
        ([box(10, 10, 30, 20)] * 3, 200),
        ([box(-50, 90, 200, 300)], 1000),  # partly outside
        ([box(200, 200, 300, 300)], 0),
        ([[[50, 30], [70, 50], [50, 70], [30, 50]]], 800),  # standing on a corner
        ([[[70, 50], [50, 30], [30, 50], [50, 70]]], 800),  # the other way round
        ([box(10, 10, 10, 20)], 0),
    ],
)
def test_area_of_the_union(boxes: list, expected: float) -> None:
    assert union_area(np.array(boxes, float).reshape(-1, 4, 2), 100, 100) * 1e4 == pytest.approx(
        expected, abs=0.5
    )


def test_area_against_painting_the_boxes() -> None:
    rng = np.random.default_rng(0)
    boxes, canvas = [], Image.new("1", (1600, 900))
    for _ in range(12):
        centre, along = rng.uniform((0, 0), (160, 90)), rng.uniform(-20, 20, 2)
        across = np.array([-along[1], along[0]]) * rng.uniform(0.1, 1)
        corners = np.stack([centre - along - across, centre + along - across, centre + along + across])
        corners = np.concatenate([corners, [centre - along + across]])
        boxes.append(corners)
        ImageDraw.Draw(canvas).polygon([tuple(corner * 10) for corner in corners], fill=1)
    assert union_area(np.stack(boxes), 90, 160) == pytest.approx(np.asarray(canvas).mean(), abs=2e-3)


@needs_ocr
@pytest.mark.parametrize(("kind", "low", "high"), [("text", 0.02, 0.15), ("caption", 0.001, 0.01)])
def test_drawn_text_is_found_and_measured(kind: str, low: float, high: float) -> None:
    index = {"text": 3, "caption": 4}[kind]
    scene = sample_video(0, index).scenes[0]
    frame = next(render_scene(scene, 270, 480, 24))
    score = RapidOcrScorer(RapidOcrOptions(frames=1))(Frames(frame[None], np.zeros(1)), {})
    assert low < score.value < high
    assert score.value >= 0.9 * scene.text_area  # a box holds its ink
    (frame,) = score.detail["frames"]
    boxes = frame["boxes"]
    assert np.asarray(boxes).shape[1:] == (4, 2)
    assert 0 <= np.min(boxes) <= np.max(boxes) <= 1


@needs_ocr
def test_a_picture_without_text_has_none() -> None:
    scene = RawScene((5, 5, 5), 1, 0.0, "left", 2, "blur")
    frames = np.stack(list(render_scene(scene, 270, 480, 24)))
    assert RapidOcrScorer(RapidOcrOptions(frames=1))(Frames(frames, np.zeros(1)), {}).value == 0


def test_the_largest_frame_counts_and_huge_boxes_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = RapidOcrScorer(RapidOcrOptions(frames=2))
    answers = iter([[box(0, 0, 100, 100)], [box(0, 0, 50, 20), box(0, 0, 99, 99)]])

    class Engine:
        def __call__(self, image: np.ndarray, **more: object) -> object:
            return type("Found", (), {"boxes": np.array(next(answers), float)})

    monkeypatch.setattr(scorer, "_engine", Engine())
    score = scorer(Frames(np.zeros((2, 100, 100, 3), np.uint8), np.arange(2.0)), {})
    assert score.values == (0.0, 0.1)
    assert score.value == 0.1


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ea_data.options.find_spec", lambda name: None)
    scorer = RapidOcrScorer(RapidOcrOptions())
    assert len(scorer.missing()) == 2
    assert all("pip install 'ea-data[ocr]'" in line for line in scorer.missing())
    with pytest.raises(MissingPackageError, match="rapidocr"):
        scorer.detect(np.zeros((64, 64, 3), np.uint8))
    assert text.RapidOcrOptions().frames == 3
