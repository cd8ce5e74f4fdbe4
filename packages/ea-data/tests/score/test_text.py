"""`rapidocr`: areas are unions of boxes, and drawn text is found."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ea_data.draw.raw import RawScene, render_scene, sample_video
from ea_data.protocols import Frames, Score
from ea_data.score.text import RapidOcrOptions, RapidOcrScorer
from ea_data.score.text_boxes import lines, overlap, union_area
from ea_data.score.text_engine import Reading, TextEngine
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
@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize(("kind", "low", "high"), [("text", 0.02, 0.15), ("caption", 0.001, 0.01)])
def test_drawn_text_is_found_and_measured(kind: str, low: float, high: float, reads: bool) -> None:
    index = {"text": 3, "caption": 4}[kind]
    scene = sample_video(0, index).scenes[0]
    frame = next(render_scene(scene, 270, 480, 24))
    options = RapidOcrOptions(frames=1, read=reads)
    score = RapidOcrScorer(options)(Frames(frame[None], np.zeros(1)), {})
    assert low < score.value < high
    assert score.value >= 0.9 * scene.text_area  # a box holds its ink
    (frame,) = score.detail["frames"]
    boxes = frame["boxes"]
    assert np.asarray(boxes).shape[1:] == (4, 2)
    assert 0 <= np.min(boxes) <= np.max(boxes) <= 1
    if reads:
        assert frame["texts"] == [scene.text]
        assert min(frame["confidences"]) >= 0.8
        assert score.detail["text"] == scene.text


@needs_ocr
def test_a_picture_without_text_has_none() -> None:
    scene = RawScene((5, 5, 5), 1, 0.0, "left", 2, "blur")
    frames = np.stack(list(render_scene(scene, 270, 480, 24)))
    assert RapidOcrScorer(RapidOcrOptions(frames=1))(Frames(frames, np.zeros(1)), {}).value == 0


def test_the_largest_frame_counts_and_huge_boxes_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = RapidOcrScorer(RapidOcrOptions(frames=2, read=False))
    answers = iter([[box(0, 0, 100, 100)], [box(0, 0, 50, 20), box(0, 0, 99, 99)]])

    class Engine:
        def __call__(self, image: np.ndarray, **more: object) -> object:
            boxes = np.array(next(answers), float)
            return type("Found", (), {"boxes": boxes, "scores": np.ones(len(boxes))})

    engine = TextEngine.__new__(TextEngine)
    engine.largest, engine._engine = 0.5, Engine()
    monkeypatch.setattr(scorer, "_engine", engine)
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


class Told:
    """An engine that finds and reads what it is told, by the brightness of a frame's first pixel."""

    def __init__(self, found: dict[int, list[tuple[list[list[float]], float, str, float]]]) -> None:
        self.found, self.looked = found, []

    def detect(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.looked.append(int(frame[0, 0, 0]))
        found = self.found.get(self.looked[-1], [])
        boxes = np.array([one[0] for one in found], float).reshape(-1, 4, 2)
        return boxes, np.array([one[1] for one in found])

    def read(self, frame: np.ndarray, boxes: np.ndarray) -> list[Reading]:
        found = self.found.get(int(frame[0, 0, 0]), [])
        by_box = {str(np.array(one[0], float)): Reading(one[2], one[3]) for one in found}
        return [by_box[str(box)] for box in boxes]


def score_of(
    found: dict[int, list[tuple]], num_frames: int = 6, **options: object
) -> tuple[Score, list[int]]:
    """The score of plain frames (100 x 200) that are as bright as their number."""
    scorer = RapidOcrScorer(RapidOcrOptions(**{"samples": num_frames, **options}))
    scorer._engine = engine = Told(found)
    frames = (
        np.zeros((num_frames, 100, 200, 3), np.uint8)
        + np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    )
    return scorer(Frames(frames, np.arange(num_frames) / 2), {}), engine.looked


A_LINE = box(20, 80, 120, 95)


@pytest.mark.parametrize(
    ("text", "confidence", "counts"),
    [
        ("SUBSCRIBE", 0.95, True),
        ("SUBSCRIBE", 0.8, True),
        ("SUBSCRIBE", 0.79, False),
        ("HD", 0.99, False),
        ("T V 2", 0.99, True),
        ("- - - -", 0.99, False),
        ("OOOOOOO", 0.99, False),
        ("o O O", 0.99, False),
        ("O 0 o O", 0.99, False),
        ("00:00:00", 0.99, True),
        ("\u7b2c\u4e00\u7ae0", 0.99, True),
    ],
)
def test_text_counts_when_it_is_read(text: str, confidence: float, counts: bool) -> None:
    score, _ = score_of({1: [(A_LINE, 0.6, text, confidence)]})
    assert score.value == pytest.approx(0.075 if counts else 0)
    boxes = [frame["boxes"] for frame in score.detail["frames"]]
    assert [len(one) for one in boxes] == [int(counts), 0, 0]
    assert score.detail["text"] == (text if counts else "")
    assert score.detail["samples"] == 6


def test_options_say_how_many_characters_and_how_sure() -> None:
    found = {1: [(A_LINE, 0.6, "HD", 0.6)]}
    assert score_of(found)[0].value == 0
    assert score_of(found, min_chars=2, confidence=0.6)[0].value > 0


def test_words_of_one_line_are_counted_together() -> None:
    near, far = box(20, 80, 60, 95), box(190, 80, 199, 95)
    words = [(near, 0.6, "I", 0.9), (box(66, 80, 100, 95), 0.6, "am", 0.9), (far, 0.6, "so", 0.9)]
    score, _ = score_of({1: words})
    assert score.detail["frames"][0]["texts"] == ["I", "am"]
    assert lines(np.array([one[0] for one in words], float)) == [[0, 1], [2]]


def test_a_script_that_is_not_read_counts_when_it_stays() -> None:
    line = (A_LINE, 0.8, "", 0.0)
    score, looked = score_of({0: [line], 1: [line]})
    assert score.value == pytest.approx(0.075)
    assert score.detail["text"] == "(not readable)"
    assert looked == [1, 3, 5, 0]  # spread evenly, then beside the line
    assert score_of({0: [line], 1: [line]}, unread=1)[0].value == 0
    assert score_of({1: [line]})[0].value == 0  # seen once
    assert score_of({n: [(A_LINE, 0.6, "", 0.0)] for n in range(6)})[0].value == 0  # not sure
    assert (
        score_of({n: [(box(0, 80, 200, 95), 0.8, "", 0.0)] for n in range(6)})[0].value == 0
    )  # from edge to edge
    assert score_of({n: [(box(20, 20, 60, 60), 0.8, "", 0.0)] for n in range(6)})[0].value == 0  # no line
    assert score_of({n: [(A_LINE, 0.8, "DONINON", 0.2)] for n in range(6)})[0].value == 0  # a bad guess


@pytest.mark.parametrize(("text", "counts"), [("ph nLju pnin", True), ("", False), ("o O oo", False)])
def test_a_line_at_the_edge_that_stays_counts_if_it_looks_like_letters(text: str, counts: bool) -> None:
    line = (box(1, 80, 120, 95), 0.8, text, 0.6)
    assert (score_of({n: [line] for n in range(6)})[0].value > 0) is counts


def test_two_rings_are_no_line() -> None:
    for text in ("oo", "O o", "0o"):
        assert score_of({n: [(A_LINE, 0.8, text, 0.8)] for n in range(6)})[0].value == 0


def test_overlap_of_boxes() -> None:
    one, half = np.array(box(0, 0, 10, 10), float), np.array(box(5, 0, 15, 10), float)
    assert overlap(one, one) == 1
    assert overlap(one, half) == pytest.approx(1 / 3)
    assert overlap(one, half + 20) == 0
