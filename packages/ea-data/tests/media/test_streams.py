"""The right stream of a file, transparency on white, gaps and animations: drawn files of each kind."""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ea_data.media.cut import suffix_of, write_clip
from ea_data.media.frames import read_frames
from ea_data.media.look import Look
from ea_data.media.probe import BadFile, probe
from ea_data.media.reader import Cut, read
from ea_data.media.reader import probe as probe_header
from ea_data.media.timeline import place_of
from ea_data.protocols import FrameRequest, Span
from ea_runtime.video.reader import read_frames as read_all

HEIGHT, WIDTH = 64, 96


def flat(colour: tuple[int, int, int], number: int) -> np.ndarray:
    frame = np.full((HEIGHT, WIDTH, 3), colour, np.uint8)
    frame[:, 4 * number : 4 * number + 8] = 255 - np.array(colour)
    return frame


RED, GREEN = (200, 30, 30), (30, 160, 60)


def write_streams(path: Path, *streams: dict[str, Any]) -> Path:
    """A file with several video streams. Each: colour, codec, num_frames, disposition, height, width."""
    with av.open(str(path), "w") as container:
        made = []
        for told in streams:
            stream: Any = container.add_stream(told.get("codec", "libx264"), rate=24)
            stream.height, stream.width = told.get("height", HEIGHT), told.get("width", WIDTH)
            stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(told.get("codec", ""), "yuv420p")
            stream.disposition = told.get("disposition", 0)
            made.append(stream)
        for stream, told in zip(made, streams, strict=True):
            for number in range(told.get("num_frames", 24)):
                frame = av.VideoFrame.from_ndarray(flat(told["colour"], number), format="rgb24")
                frame = frame.reformat(stream.width, stream.height, stream.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 24)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def cut(path: Path) -> tuple[Any, np.ndarray, np.ndarray]:
    """The probe's findings, the frames of the whole file as a clip, and the scored frames."""
    from ea_data.run.worker import clip_entry

    found = probe(path, path.parent)
    info = found.info
    entry = clip_entry(Span(0.0, info.seconds), info, found.content, found.timeline, "test")
    record = {**asdict(info), **entry, "path": str(path), "fps_exact": str(info.fps)}
    target = path.parent / "clip.mp4"
    write_clip(record, path.parent, target)
    request = FrameRequest("fps", 1000)
    seen = {"place": place_of(record), "look": Look.of(record)}
    scored = read_frames(path, path.parent, 0.0, info.seconds, float(info.fps), [request], **seen)[request]
    return info, np.stack(list(read_all(target))), scored.pixels


def colour_of(frames: np.ndarray) -> tuple[int, int, int]:
    return RED if frames[..., 0].mean() > frames[..., 1].mean() else GREEN


DEFAULT = av.stream.Disposition.default.value
COVER = {"colour": RED, "codec": "mjpeg", "num_frames": 1, "height": 128, "width": 192}
SEVERAL: dict[str, tuple[str, list[dict[str, Any]], int]] = {
    "largest": ("a.avi", [{"colour": RED, "height": 32, "width": 48}, {"colour": GREEN}], 1),
    "first of equals": ("a.mkv", [{"colour": GREEN}, {"colour": RED}], 0),
    "default": (
        "a.mkv",
        [{"colour": RED, "height": 128, "width": 192}, {"colour": GREEN, "disposition": DEFAULT}],
        1,
    ),
    "cover that says so": (
        "a.mp4",
        [{**COVER, "disposition": av.stream.Disposition.attached_pic.value}, {"colour": GREEN}],
        0,
    ),
    "still that does not": ("a.mov", [{**COVER, "disposition": DEFAULT}, {"colour": GREEN}], 1),
    "ts": ("a.ts", [{"colour": RED, "height": 32, "width": 48}, {"colour": GREEN}], 1),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_one_stream_from_probe_to_training(tmp_path: Path, kind: str):
    name, streams, expected = SEVERAL[kind]
    path = write_streams(tmp_path / name, *streams)
    info, clip, scored = cut(path)
    assert (info.stream, info.num_frames, info.height, info.width) == (expected, 24, HEIGHT, WIDTH)
    assert info.num_streams == (1 if "cover" in kind else 2)
    trained = read(Cut(path, tmp_path, 0, 24, HEIGHT, WIDTH))
    assert probe_header(path, tmp_path)[:2] == (WIDTH, HEIGHT)
    for frames in (clip, scored, trained, np.stack(list(read_all(path)))):
        assert frames.shape == (24, HEIGHT, WIDTH, 3)
        assert colour_of(frames) == GREEN


def test_a_cover_alone_is_no_video(tmp_path: Path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("aac", rate=44100)
        cover: Any = container.add_stream("mjpeg", rate=24)
        cover.height, cover.width, cover.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        tone = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), format="fltp", layout="stereo")
        tone.rate = 44100
        container.mux(sound.encode(tone))
        container.mux(sound.encode(None))
        container.mux(
            cover.encode(av.VideoFrame.from_ndarray(flat(RED, 0), format="rgb24").reformat(format="yuvj420p"))
        )
        container.mux(cover.encode(None))
    with pytest.raises(BadFile, match="a cover picture and no video"):
        probe(path, tmp_path)


# -- transparency


def see_through(number: int) -> np.ndarray:
    """(H, W, 4): the left third red, the middle half red, the right third clear, with green underneath."""
    frame = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    frame[..., :3] = (20, 200, 20)
    frame[:, : 2 * WIDTH // 3, :3] = (220, 20, 20)
    frame[..., 3] = np.repeat([255, 128, 0], WIDTH // 3)
    frame[: 2 + 2 * number, :8] = (0, 0, 255, 255)
    return frame


SEEN = np.array([(220, 20, 20), (237, 137, 137), (255, 255, 255)])
TRANSPARENT = [
    ("a.webm", "libvpx-vp9", "yuva420p", {"crf": "10", "b": "0"}),
    ("a.webm", "libvpx", "yuva420p", {"crf": "4", "b": "2M", "auto-alt-ref": "0"}),
    ("a.mov", "prores_ks", "yuva444p10le", {"profile": "4"}),
    ("a.mov", "qtrle", "argb", {}),
    ("a.mov", "png", "rgba", {}),
    ("a.mkv", "ffv1", "yuva420p", {}),
    ("a.mkv", "ffv1", "bgra", {}),
    ("a.avi", "utvideo", "gbrap", {}),
]


@pytest.mark.parametrize(("name", "codec", "form", "options"), TRANSPARENT)
def test_transparency_is_laid_on_white(
    tmp_path: Path, name: str, codec: str, form: str, options: dict[str, str]
):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=24, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, form
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(see_through(number), format="rgba").reformat(format=form)
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info, clip, scored = cut(path)
    assert info.has_alpha
    trained = read(Cut(path, tmp_path, 0, 12, HEIGHT, WIDTH))
    for frames in (clip, scored, trained, np.stack(list(read_all(path)))):
        assert frames.shape == (12, HEIGHT, WIDTH, 3)
        places = frames[5, 40:60, [WIDTH // 6, WIDTH // 2, 5 * WIDTH // 6]].mean(1)
        assert np.abs(places - SEEN).max() < 12
    on_grey = read(Cut(path, tmp_path, 0, 12, HEIGHT, WIDTH, background=(100, 100, 100)))
    assert np.abs(on_grey[5, 40:60, -10:].mean((0, 1)) - 100).max() < 4


def test_an_opaque_video_is_not_transparent(tmp_path: Path):
    path = write_streams(tmp_path / "a.mov", {"colour": GREEN, "codec": "png"})
    assert not probe(path, tmp_path).info.has_alpha


# -- gaps


@pytest.mark.parametrize(
    ("late", "num_gaps", "longest"), [({}, 0, 0.0), ({20: 48}, 1, 49 / 24), ({8: 1, 30: 24}, 2, 25 / 24)]
)
def test_gaps_are_counted_and_measured(
    tmp_path: Path, draw_video: Any, late: dict[int, int], num_gaps: int, longest: float
):
    extra = np.cumsum([late.get(number, 0) for number in range(48)])
    times = [round((number + more) * 1000 / 24) for number, more in enumerate(extra)]
    info = probe(draw_video(tmp_path / "a.mkv", 48, times=times), tmp_path).info
    assert (info.num_gaps, info.is_variable_rate) == (num_gaps, num_gaps > 0)
    assert info.longest_gap == pytest.approx(longest, abs=0.002)


# -- pictures that move


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
@pytest.mark.parametrize("num_frames", [1, 6])
def test_an_animation_is_said_to_be_one(tmp_path: Path, name: str, num_frames: int):
    path = tmp_path / name
    first, *others = [Image.fromarray(flat(RED, number)) for number in range(num_frames)]
    more: dict[str, Any] = {"save_all": True, "append_images": others, "lossless": True} if others else {}
    first.save(path, **more)
    info = probe(path, tmp_path).info
    assert (info.is_picture, info.is_animation, info.has_alpha) == (True, num_frames > 1, False)
    record = {"path": str(path), "is_picture": True, "codec": info.codec}
    clip = tmp_path / f"clip{suffix_of(record)}"
    write_clip(record, tmp_path, clip)
    with Image.open(clip) as written:
        assert getattr(written, "n_frames", 1) == 1
        assert np.abs(np.asarray(written.convert("RGB")).astype(int) - flat(RED, 0)).mean() < 4
