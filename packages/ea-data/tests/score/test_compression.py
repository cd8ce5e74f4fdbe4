"""`compression`: what is spoilt rates below what is clean, however soft, dark, still or noisy the clean is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from ea_data.draw.looks import LOOKS, render_look
from ea_data.filter.limits import CompressionLimits, build_compression
from ea_data.media.frames import read_frames
from ea_data.media.probe import probe
from ea_data.protocols import Score, Span
from ea_data.records.record import score_entry
from ea_data.run.worker import clip_entry
from ea_data.score import compression_parts as parts
from ea_data.score.compression import CompressionOptions, CompressionScorer, spent_bits, windows

HEIGHT, WIDTH, NUM_FRAMES = 240, 432, 48
SPEED = {
    "libx264": {"preset": "veryfast", "x264-params": "mbtree=0"},  # which reads memory that it never wrote
    "libx265": {"preset": "veryfast", "x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "12"},
}
CLEAN = [look for look in LOOKS if look != "pixels"]


def encode(path: Path, frames: Iterable[np.ndarray], codec: str, quality: int) -> Path:
    """Writes a video. quality: crf, or the quantiser of codecs without one."""
    has_crf = codec.startswith("lib")
    options = {"crf": str(quality), "b": "0"} if has_crf else {"qmin": str(quality), "qmax": str(quality)}
    options |= SPEED.get(codec, {})
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(24), options=options)
        stream.height, stream.width = HEIGHT, WIDTH
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode(None))
    return path


def look(name: str) -> Iterable[np.ndarray]:
    return render_look(name, NUM_FRAMES, HEIGHT, WIDTH)


def scored(path: Path) -> Score:
    """The score of a whole file, by the same steps as the pipeline's."""
    found = probe(path, path.parent)
    info = found.info
    entry = clip_entry(Span(0.0, info.seconds), info, found.content, found.timeline, "test")
    record = {**asdict(info), **entry, "fps": float(info.fps)}
    scorer = CompressionScorer(CompressionOptions())
    frames = read_frames(path, path.parent, 0.0, info.seconds, float(info.fps), [scorer.needs])
    return scorer(frames[scorer.needs], record)


def verdict(score: Score) -> tuple[bool, str]:
    decision = build_compression(CompressionLimits())({"scores": {"compression": score_entry(score)}})
    return decision.is_kept, decision.reason


def pixelated(frames: Iterable[np.ndarray], height: int, width: int) -> Iterable[np.ndarray]:
    for frame in frames:
        small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        yield cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)


def enlarged(frames: Iterable[np.ndarray], times: int) -> Iterable[np.ndarray]:
    for frame in frames:
        small = cv2.resize(frame, None, fx=1 / times, fy=1 / times, interpolation=cv2.INTER_AREA)
        yield cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Score]:
    """The score of each clean look at crf 23."""
    folder = tmp_path_factory.mktemp("clean")
    return {name: scored(encode(folder / f"{name}.mp4", look(name), "libx264", 23)) for name in CLEAN}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_look_is_kept(clean: dict[str, Score], name: str) -> None:
    assert verdict(clean[name])[0], clean[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "quality", "change", "part"),
    [
        ("bokeh", "libx264", 45, None, "mush"),
        ("grain", "libx264", 45, None, "mush"),
        ("fog", "libx265", 45, None, "mush"),
        ("grain", "mpeg4", 31, None, "mush"),
        ("texture", "mjpeg", 31, None, "blocking"),
        ("texture", "libx264", 18, lambda frames: pixelated(frames, 30, 54), "blocking"),
        ("texture", "libx264", 18, lambda frames: pixelated(frames, 32, 48), "blocking"),  # 7.5 and 9 pixels
        ("texture", "libx264", 18, lambda frames: enlarged(frames, 8), "edge_width"),
        ("night", "libx264", 18, lambda frames: enlarged(frames, 8), "edge_width"),
    ],
)
def test_what_is_spoilt_rates_below_everything_clean(
    tmp_path: Path, clean: dict[str, Score], name: str, codec: str, quality: int, change: Any, part: str
) -> None:
    frames = look(name)
    suffix = {"mpeg4": "avi", "mjpeg": "avi"}.get(codec, "mp4")
    path = encode(tmp_path / f"a.{suffix}", change(frames) if change else frames, codec, quality)
    score = scored(path)
    is_kept, reason = verdict(score)
    assert not is_kept, score
    assert f"({part} " in reason
    assert score.value < min(other.value for other in clean.values()) - 0.1


LADDERS = [
    ("libx264", "mp4", (18, 27, 36, 45)),
    ("mpeg4", "avi", (2, 6, 14, 31)),
    ("mjpeg", "avi", (2, 6, 14, 31)),
]
if os.environ.get("EA_FULL"):
    LADDERS += [
        ("libx265", "mp4", (18, 27, 36, 45)),
        ("libvpx-vp9", "webm", (12, 30, 46, 62)),
        ("libsvtav1", "mkv", (12, 30, 46, 62)),
        ("mpeg2video", "mpg", (2, 6, 14, 31)),
    ]


@pytest.mark.parametrize(("codec", "suffix", "qualities"), LADDERS)
def test_the_value_falls_with_the_quality_setting(
    tmp_path: Path, codec: str, suffix: str, qualities: tuple[int, ...]
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg has no {codec}")
    values = [
        scored(encode(tmp_path / f"{quality}.{suffix}", look("texture"), codec, quality)).value
        for quality in qualities
    ]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)


def test_a_picture_is_scored_too(tmp_path: Path) -> None:
    frame = next(iter(look("texture")))
    values = []
    for quality in (95, 10):
        path = tmp_path / f"{quality}.jpg"
        cv2.imwrite(str(path), frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        values.append(scored(path))
    assert verdict(values[0])[0]
    assert values[1].value < values[0].value
    assert values[1].detail["blocking"] > 2


# -- the parts


@pytest.mark.parametrize("period", [5, 8, 10.5, 16])
@pytest.mark.parametrize("offset", [0, 3])
def test_a_grid_of_any_period_is_found(period: float, offset: int) -> None:
    if period != int(period) and offset:
        pytest.skip("a fractional grid begins at the frame's edge")
    size = 21 * 16
    profile = np.random.default_rng(0).uniform(0.2, 0.4, size - 1)
    lines = np.floor(np.arange(1, size) * period + offset).astype(int) - 1
    profile[lines[lines < len(profile)]] += 3
    assert parts.grid(profile, np.arange(size - 1), size) > 3
    assert parts.grid(np.roll(np.sort(profile), 7), np.arange(size - 1), size) < 2


def test_steps_stand_alone() -> None:
    luma = np.full((32, 64), 100, np.uint8)
    luma[:, 40:] = 104
    assert parts.steps(luma, 1).argmax() == 39
    assert parts.steps(luma, 1).max() == 4
    assert parts.steps(luma.T, 0).max() == 4
    ramp = np.repeat(np.arange(0, 192, 3, dtype=np.uint8)[None], 32, 0)
    assert parts.steps(ramp, 1).max() == 0


@pytest.mark.parametrize(("times", "low", "high"), [(1, 1, 1.5), (2, 1.5, 2.5), (4, 2.7, 4.2), (8, 3.8, 6)])
def test_edges_are_as_wide_as_the_enlargement(times: int, low: float, high: float) -> None:
    frame = next(iter(enlarged(look("texture"), times)))
    width = parts.edge_width(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
    assert width is not None
    assert low <= width <= high


def test_detail_is_what_a_blur_takes() -> None:
    frame = cv2.cvtColor(next(iter(look("texture"))), cv2.COLOR_RGB2GRAY)
    found = [parts.detail(cv2.GaussianBlur(frame, (0, 0), radius)) for radius in (0.3, 0.8, 1.5, 3.0)]
    assert found == sorted(found, key=lambda value: -(value or 0))
    assert parts.detail(np.full((64, 64), 90, np.uint8)) is None


RECORD = {"bits": 230400 * 24, "width": 640, "height": 360, "num_frames": 24, "fps": 24.0, "codec": "h264"}


def test_bits_by_codec_size_rate_and_stillness() -> None:
    assert spent_bits(RECORD, 0.0, 1.0) == pytest.approx(0.0)
    assert spent_bits(RECORD | {"bits": RECORD["bits"] / 4}, 0.0, 1.0) == pytest.approx(-2.0)
    assert (
        spent_bits(RECORD | {"codec": "mpeg2video"}, 0.0, 1.0)
        < 0
        < spent_bits(RECORD | {"codec": "hevc"}, 0.0, 1.0)
    )
    # four times the pixels need 2.8 times the bits, and so do four times the frames
    assert spent_bits(
        RECORD | {"width": 1280, "height": 720, "bits": RECORD["bits"] * 2**1.5}, 0.0, 1.0
    ) == pytest.approx(0)
    assert spent_bits(
        RECORD | {"fps": 96.0, "num_frames": 96, "bits": RECORD["bits"] * 2**1.5}, 0.0, 1.0
    ) == pytest.approx(0)
    assert spent_bits(RECORD, 0.0, 0.0) > spent_bits(RECORD, 0.0, 0.5) > spent_bits(RECORD, 1.0, 0.5)


def test_unknown_bits_are_an_error_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"bits are not known.*ea data run"):
        spent_bits(RECORD | {"bits": 0}, 0.0, 1.0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 8, 8), (2, 17, 33), (4, 360, 40), (4, 720, 1280)])
def test_any_size_is_rated(shape: tuple[int, int, int]) -> None:
    from ea_data.protocols import Frames

    flat = np.full(shape, 120, np.uint8)
    score = CompressionScorer(CompressionOptions())(Frames(flat, np.arange(len(flat))), RECORD)
    assert 0 <= score.value <= 1
    for frame, (down, across) in zip(flat, windows(flat, 640), strict=True):
        assert frame[down, across].shape == tuple(min(side, 640) for side in shape[1:])


def test_the_real_cases_are_told_apart() -> None:
    """The cases' own clips, where they are at hand; the tests above have twins of them."""
    cases = (Path(__file__).parents[5] / "shared" / "cases" / "data").resolve()
    if not cases.is_dir():
        pytest.skip("../shared/cases is not here")
    spoilt = [scored(path) for path in sorted((cases / "mush").iterdir())]
    folders = ("one_shot", "no_letters", "copies", "mkv_b_frames", "one_gap", "sar")
    good = [scored(path) for folder in folders for path in sorted((cases / folder).iterdir())]
    assert len(spoilt) == 4
    assert not any(verdict(score)[0] for score in spoilt)
    assert all(verdict(score)[0] for score in good)
    assert max(score.value for score in spoilt) < min(score.value for score in good) - 0.1
