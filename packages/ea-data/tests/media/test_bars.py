"""Letter- and pillarbox is measured to the pixel, and nothing else is taken for it: drawn clips of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from ea_data.media.bars import BarFinder, Bars
from ea_data.media.cut import write_clip
from ea_data.media.frames import read_frames
from ea_data.media.look import Look
from ea_data.media.probe import probe
from ea_data.media.timeline import place_of
from ea_data.protocols import FrameRequest, Span
from ea_data.score.probe import ProbeScorer
from ea_runtime.video.reader import read_frames as read_all

HEIGHT, WIDTH = 180, 320
Draw = Callable[[int], np.ndarray]


def film(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A moving scene of shapes and textures, float (H, W, 3)."""
    chance = np.random.default_rng(3)
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    frame = np.stack([90 + 60 * np.sin((across + 3 * number) / (17 + 5 * c)) for c in range(3)], -1)
    frame += 30 * np.sin(down / 11)[..., None]
    for _ in range(6):
        top, left = chance.integers(0, height), (chance.integers(0, width) + 4 * number) % width
        frame[top : top + 24, left : left + 40] = chance.integers(30, 230, 3)
    return frame


def boxed(left: int, top: int, right: int, bottom: int, level: float = 0.0) -> Draw:
    """The film within bars."""

    def draw(number: int) -> np.ndarray:
        frame = np.full((HEIGHT, WIDTH, 3), level, np.float32)
        inner = film(number, HEIGHT - top - bottom, WIDTH - left - right)
        frame[top : HEIGHT - bottom, left : WIDTH - right] = inner
        return frame

    return draw


def encode(
    path: Path,
    draw: Draw,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    num_frames: int = 36,
    *,
    rotation: int = 0,
    aspect: Fraction | None = None,
) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=24, options=options or {"crf": "23", "g": "12"})
        stream.height, stream.width = HEIGHT, WIDTH
        stream.pix_fmt = {"prores_ks": "yuv422p10le", "mjpeg": "yuvj420p", "qtrle": "rgb24"}.get(
            codec, "yuv420p"
        )
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number in range(num_frames):
            pixels = np.clip(draw(number), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, crop_bars: bool = True) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """The probe's findings, the clip as written, its frames, and the scored frames."""
    from ea_data.run.worker import clip_entry

    found = probe(path, path.parent, crop_bars=crop_bars)
    info = found.info
    entry = clip_entry(Span(0.0, info.seconds), info, found.content, found.timeline, "test")
    record = {**asdict(info), **entry, "path": str(path), "fps_exact": str(info.fps)}
    target = path.parent / "clip.mp4"
    written = write_clip(record, path.parent, target)
    request = FrameRequest("fps", 1000)
    seen = {"place": place_of(record), "look": Look.of(record)}
    scored = read_frames(path, path.parent, 0.0, info.seconds, float(info.fps), [request], **seen)[request]
    return info, written, np.stack(list(read_all(target))), scored.pixels


CODECS = [
    ("a.mp4", "libx264", {"crf": "23", "g": "12"}),
    ("a.mp4", "libx264", {"crf": "36", "g": "250"}),  # ringing at the edges, and one key frame
    ("a.mkv", "libx265", {"x265-params": "log-level=none:crf=28"}),
    ("a.avi", "mpeg4", {"qmin": "8", "qmax": "8"}),
    ("a.mpg", "mpeg2video", {"b": "1M"}),
    ("a.webm", "libvpx", {"b": "400k"}),
    ("a.webm", "libvpx-vp9", {"crf": "38", "b": "0", "cpu-used": "8"}),
    ("a.mkv", "libsvtav1", {"preset": "12", "crf": "40"}),
    ("a.mov", "prores_ks", {}),
    ("a.avi", "mjpeg", {"qmin": "6", "qmax": "6"}),
    ("a.mkv", "ffv1", {}),
    ("a.mov", "qtrle", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), CODECS)
def test_bars_are_measured_in_every_codec(tmp_path: Path, name: str, codec: str, options: dict[str, str]):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg has no {codec}")
    found = probe(encode(tmp_path / name, boxed(0, 22, 0, 24), codec, options), tmp_path).info
    assert found.bars[::2] == (0, 0)
    assert np.abs(np.subtract(found.bars, (0, 22, 0, 24))).max() <= 1


@pytest.mark.parametrize(
    "sides", [(0, 2, 0, 2), (0, 5, 0, 4), (0, 60, 0, 60), (40, 0, 40, 0), (7, 0, 9, 0), (40, 22, 40, 22)]
)
@pytest.mark.parametrize("level", [0, 16, 40])
def test_bars_of_every_size(tmp_path: Path, sides: tuple[int, ...], level: int):
    found = probe(encode(tmp_path / "a.mp4", boxed(*sides, level)), tmp_path).info
    assert np.abs(np.subtract(found.bars, sides)).max() <= 1


def fade(number: int) -> np.ndarray:
    return boxed(0, 22, 0, 22)(number) * min(1, number / 24)


def written_on(number: int) -> np.ndarray:
    """Subtitles within the lower bar, in some frames."""
    frame = boxed(0, 36, 0, 36)(number)
    if number >= 12:
        image = Image.fromarray(np.clip(frame, 0, 255).astype(np.uint8))
        ImageDraw.Draw(image).text((80, HEIGHT - 26), "AND THEN THEY WERE NEVER SEEN", fill="white")
        frame = np.asarray(image).astype(np.float32)
    return frame


def noisy(number: int) -> np.ndarray:
    return boxed(0, 22, 0, 22, 20)(number) + np.random.default_rng(number).normal(0, 5, (HEIGHT, WIDTH, 1))


@pytest.mark.parametrize(("draw", "thickness"), [(fade, 22), (written_on, 36), (noisy, 22)])
@pytest.mark.parametrize("options", [{"crf": "23", "g": "12"}, {"crf": "23", "g": "250"}])
def test_bars_with_something_else(tmp_path: Path, draw: Draw, thickness: int, options: dict[str, str]):
    found = probe(encode(tmp_path / "a.mp4", draw, options=options, num_frames=60), tmp_path).info
    assert np.abs(np.subtract(found.bars, (0, thickness, 0, thickness))).max() <= 1


# -- what has none


def night(number: int) -> np.ndarray:
    """A dark sky and a dark ground, lit houses between them whose roofs are not in one line."""
    frame = np.full((HEIGHT, WIDTH, 3), 8, np.float32)
    chance = np.random.default_rng(1)
    for left in range(-20, WIDTH, 26):
        top = 50 + chance.integers(0, 40)
        frame[top : 130 + chance.integers(0, 12), max(0, left + number % 4) : left + 22] = chance.integers(
            60, 200
        )
    return frame


def vignette(number: int) -> np.ndarray:
    down, across = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    return film(number) * np.clip(1.3 - 1.3 * (down**2 + 0.4 * across**2), 0, 1)[..., None]


def dark_top(number: int) -> np.ndarray:
    frame = film(number)
    frame[:60] = 3
    return frame


def gradient(number: int) -> np.ndarray:
    down = np.minimum(np.arange(HEIGHT), np.arange(HEIGHT)[::-1])
    return np.broadcast_to(down[:, None, None] * 2.0, (HEIGHT, WIDTH, 3)) + number % 3


def black(number: int) -> np.ndarray:
    return np.zeros((HEIGHT, WIDTH, 3), np.float32)


def title(number: int) -> np.ndarray:
    image = Image.new("RGB", (WIDTH, HEIGHT))
    for line in range(4):
        ImageDraw.Draw(image).text(
            (30, 60 + 16 * line), "A FILM OF MANY WORDS AND OF FEW DEEDS, IN BLACK", fill="white"
        )
    return np.asarray(image).astype(np.float32)


def spot(number: int) -> np.ndarray:
    image = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).ellipse((60 + number, 20, 240 + number, 160), fill=255)
    lit = np.asarray(image.filter(ImageFilter.GaussianBlur(4))).astype(np.float32) / 255
    return film(number) * lit[..., None]


def sometimes(number: int) -> np.ndarray:
    """Bars in one scene, the whole picture in the next."""
    return boxed(0, 22, 0, 22)(number) if number < 24 else film(number)


NO_BARS = [film, night, vignette, dark_top, gradient, black, title, spot, sometimes]


@pytest.mark.parametrize("draw", NO_BARS)
@pytest.mark.parametrize("options", [{"crf": "23", "g": "12"}, {"crf": "34", "g": "250"}])
def test_what_is_no_bar(tmp_path: Path, draw: Draw, options: dict[str, str]):
    assert (
        probe(encode(tmp_path / "a.mp4", draw, options=options, num_frames=60), tmp_path).info.bars
        == (0,) * 4
    )
    finder = BarFinder()
    for number in range(0, 60, 7):
        pixels = np.clip(draw(number), 0, 255).astype(np.uint8)
        finder.add(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
    assert not finder.found()


# -- cropped on request


def test_scores_and_clips_see_the_cropped_picture(tmp_path: Path):
    path = encode(tmp_path / "a.mp4", boxed(0, 23, 0, 22))
    info, written, pixels, scored = cut(path, crop_bars=False)
    assert (info.width, info.height, info.bars) == (WIDTH, HEIGHT, (0, 23, 0, 22))
    assert (written.width, written.height) == (WIDTH, HEIGHT)
    whole = pixels
    info, written, pixels, scored = cut(path)
    assert info.is_cropped
    assert info.bars == (0, 23, 0, 22)  # as measured
    assert (info.width, info.height) == (written.width, written.height) == (WIDTH, HEIGHT - 24 - 22)
    assert pixels.shape == scored.shape == (36, HEIGHT - 46, WIDTH, 3)
    assert np.abs(pixels.astype(int) - whole[:, 24:-22]).mean() < 3
    assert np.abs(scored.astype(int) - whole[:, 24:-22]).mean() < 3


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_bars_of_a_turned_video(tmp_path: Path, rotation: int):
    info, written, pixels, scored = cut(encode(tmp_path / "a.mp4", boxed(0, 20, 0, 30), rotation=rotation))
    assert info.rotation == rotation
    expected = {90: (20, 0, 30, 0), 180: (0, 30, 0, 20), 270: (30, 0, 20, 0)}[rotation]
    assert info.bars == expected
    assert scored.shape == pixels.shape
    assert (written.height, written.width) == pixels.shape[1:3]
    assert min(pixels.shape[1:3]) == HEIGHT - 50
    edges = pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]
    assert min(float(edge.mean()) for edge in edges) > 30
    assert np.abs(pixels.astype(int) - scored).mean() < 3


def test_bars_of_wide_pixels_are_measured_as_shown(tmp_path: Path):
    path = encode(tmp_path / "a.mp4", boxed(30, 0, 30, 0), aspect=Fraction(4, 3))
    info, written, pixels, _ = cut(path)
    assert info.bars == (40, 0, 40, 0)
    assert (written.width, written.height) == (info.width, info.height) == (346, HEIGHT)
    assert float(pixels[:, :, 0].mean()) > 30


def test_the_share_of_bars_is_a_score(tmp_path: Path):
    from ea_data.options import NoOptions
    from ea_data.records.record import empty_record
    from ea_data.run.worker import no_frames

    record = {**empty_record("a"), "width": 100, "height": 100, "bars": [0, 10, 0, 10]}
    shares = [
        ProbeScorer(NoOptions())(no_frames(), {**record, "is_cropped": is_cropped}).detail["bars"]
        for is_cropped in (False, True)
    ]
    assert shares == [0.2, 0.0]


def test_turned_bars():
    assert Bars(1, 2, 3, 4).turned(90).as_list() == [2, 3, 4, 1]
    assert Bars(1, 2, 3, 4).turned(90).turned(-90) == Bars(1, 2, 3, 4)
