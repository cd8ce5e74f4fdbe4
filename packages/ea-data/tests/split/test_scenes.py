"""`scenedetect` finds the drawn cuts, and exactly those that the library finds when it is called as V2 calls it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ea_data.draw.raw import RawVideo, render_video, sample_video
from ea_data.protocols import Cut, Lost, Span, Spans, VideoInfo
from ea_data.split.scenes import SceneOptions, SceneSplitter
from ea_data.split.whole import WholeOptions, WholeSplitter
from ea_runtime.errors import UserError
from ea_runtime.video.output import write_video

FPS = 12
PASSES = ((10, 0), (20, 1), (30, 2))


def info_of(path: Path, video: RawVideo) -> VideoInfo:
    seconds = video.num_frames / video.fps
    return VideoInfo(path, video.width, video.height, Fraction(video.fps), seconds, video.num_frames, "h264")


def draw(folder: Path, index: int) -> tuple[Path, RawVideo]:
    video = sample_video(3, index, height=144, width=320, fps=FPS)
    path = folder / f"{index}.mp4"
    return write_video(path, render_video(video), video.fps), video


def published(path: Path) -> list[int]:
    """The boundaries by three calls of the library, as the published script makes them."""
    from scenedetect import ContentDetector, SceneManager, open_video
    from scenedetect.detector import FlashFilter

    points: set[int] = set()
    for threshold, skip in PASSES:
        manager = SceneManager()
        manager.add_detector(
            ContentDetector(threshold=threshold, min_scene_len=10, filter_mode=FlashFilter.Mode.SUPPRESS)
        )
        manager.detect_scenes(open_video(str(path), backend="pyav"), frame_skip=skip)
        points |= {time.frame_num for scene in manager.get_scene_list() for time in scene}
    return sorted(points)


@pytest.fixture(scope="module", params=[0, 9, 8])  # three scenes; a short one between two; grain
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RawVideo]:
    return draw(tmp_path_factory.mktemp("drawn"), request.param)


def test_its_boundaries_are_the_library_s_own(drawn: tuple[Path, RawVideo]) -> None:
    path, video = drawn
    found = [boundary.frame for boundary in SceneSplitter(SceneOptions()).boundaries(path)[0]]
    assert found == (published(path) or [0, video.num_frames])


def test_it_finds_every_drawn_cut_and_nothing_else(drawn: tuple[Path, RawVideo]) -> None:
    path, video = drawn
    boundaries, fps = SceneSplitter(SceneOptions()).boundaries(path)
    found = [boundary.frame for boundary in boundaries]
    true = [0, *video.cuts(), video.num_frames]
    assert set(true) <= set(found)
    # the passes that skip frames see a cut up to two frames late, and the union holds theirs too
    assert all(any(0 <= frame - cut <= 2 for cut in true) for frame in found)
    assert [boundary.seconds for boundary in boundaries] == pytest.approx([frame / FPS for frame in found])
    assert fps == FPS


def test_every_detector_is_told_to_suppress(
    drawn: tuple[Path, RawVideo], monkeypatch: pytest.MonkeyPatch
) -> None:
    import scenedetect
    from scenedetect.detector import FlashFilter

    told = []
    real = scenedetect.ContentDetector

    def spy(*args: Any, **more: Any) -> object:
        told.append(more.get("filter_mode"))
        return real(*args, **more)

    monkeypatch.setattr(scenedetect, "ContentDetector", spy)
    SceneSplitter(SceneOptions()).boundaries(drawn[0])
    assert told == [FlashFilter.Mode.SUPPRESS] * 3


def test_spans_are_the_scenes_that_are_long_enough(tmp_path: Path) -> None:
    path, video = draw(tmp_path, 9)  # 4 s, 2 s, 4.5 s
    spans = SceneSplitter(SceneOptions())(path, info_of(path, video))
    first, second = video.cuts()
    frames = [(span.start * FPS, span.end * FPS) for span in spans]
    assert frames[0] == pytest.approx((0, first))
    assert frames[1][0] == pytest.approx(second, abs=2.01)
    assert frames[1][1] == pytest.approx(video.num_frames)
    assert len(frames) == 2


def test_a_long_scene_without_a_cut_is_chopped(tmp_path: Path) -> None:
    path, video = draw(tmp_path, 10)  # 13.5 s
    spans = SceneSplitter(SceneOptions())(path, info_of(path, video))
    assert spans == [Span(0.0, 10.0), Span(10.0, 13.5)]


def test_cuts_and_what_is_lost_are_told(tmp_path: Path) -> None:
    path, video = draw(tmp_path, 9)  # 4 s, 2 s, 4.5 s
    spans = SceneSplitter(SceneOptions(passes=((30.0, 0),), min_seconds=3))(path, info_of(path, video))
    assert isinstance(spans, Spans)
    first, second = (cut / FPS for cut in video.cuts())
    assert spans.cuts == (Cut(first, first), Cut(second, second))
    assert spans.lost == (Lost(first, second, "too short"),)
    assert spans.longest_scene == pytest.approx(video.num_frames / FPS - second)


def test_no_scene_is_long_enough_says_by_how_much(tmp_path: Path) -> None:
    path, video = draw(tmp_path, 9)  # 4 s, 2 s, 4.5 s
    spans = SceneSplitter(SceneOptions(min_seconds=8))(path, info_of(path, video))
    assert isinstance(spans, Spans)
    assert "longest scene is 4." in spans.reason
    assert "`min_seconds` is 8" in spans.reason


def frames_of(count: int, draw_one: Callable[[int], int] = lambda number: 90) -> list[np.ndarray]:
    return [np.full((64, 64, 3), draw_one(number), np.uint8) for number in range(count)]


def test_flat_and_single_frames_do_no_harm(tmp_path: Path) -> None:
    options = SceneOptions(min_seconds=0)
    for count in (1, 2, 48):
        path = write_video(tmp_path / f"{count}.mp4", frames_of(count), 24)
        info = VideoInfo(path, 64, 64, Fraction(24), count / 24, count, "h264")
        assert SceneSplitter(options)(path, info) == [Span(0.0, pytest.approx(count / 24))]


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    info = VideoInfo(path, 64, 64, Fraction(24), 1.0, 24, "h264")
    with pytest.raises(UserError, match=r"x\.mp4.* cannot be read as a video"):
        SceneSplitter(SceneOptions())(path, info)


def test_options_that_make_no_sense_are_refused() -> None:
    for wrong in (
        {"passes": []},
        {"passes": [[0, 1]]},
        {"passes": [[10, -1]]},
        {"min_seconds": 11},
        {"mode": "x"},
    ):
        with pytest.raises(ValueError):
            SceneOptions.model_validate(wrong)


def test_whole_gives_one_span_or_none(tmp_path: Path) -> None:
    info = VideoInfo(tmp_path / "x.mp4", 64, 64, Fraction(24), 5.0, 120, "h264")
    assert WholeSplitter(WholeOptions())(info.path, info) == [Span(0.0, 5.0)]
    for options, reason in (
        (WholeOptions(min_seconds=6), "it is 5.00 s long, and `min_seconds` is 6"),
        (WholeOptions(max_seconds=4), "it is 5.00 s long, and `max_seconds` is 4"),
    ):
        spans = WholeSplitter(options)(info.path, info)
        assert isinstance(spans, Spans)
        assert (len(spans), spans.reason) == (0, reason)
        assert [(one.start, one.end) for one in spans.lost] == [(0.0, 5.0)]
