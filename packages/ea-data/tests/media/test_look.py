"""Clips have square pixels, no combs and BT.709, whatever the file has: drawn files of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ea_data.media.cut import Written, write_clip
from ea_data.media.frames import read_frames
from ea_data.media.look import Look, combing
from ea_data.media.probe import BadFile, probe
from ea_data.media.timeline import place_of
from ea_data.protocols import FrameRequest, Span, VideoInfo
from ea_runtime.video.reader import read_frames as read_all

HEIGHT, WIDTH = 96, 128


def scene(moment: float) -> np.ndarray:
    """(H, W, 3) uint8: a smooth ground with a bright bar that moves 4 pixels a frame."""
    down, across = np.mgrid[0:HEIGHT, 0:WIDTH]
    frame = np.stack([40 + across, 60 + down, 180 - across // 2 - down // 2], -1).astype(np.uint8)
    left = 8 + int(moment * 4) % (WIDTH - 40)
    frame[16:80, left : left + 24] = (230, 220, 200)
    return frame


def fields(number: int) -> np.ndarray:
    """A frame whose odd rows are half a frame later."""
    frame = scene(number)
    frame[1::2] = scene(number + 0.5)[1::2]
    return frame


def encode(
    path: Path,
    draw: Callable[[int], np.ndarray] = scene,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    change: Callable[[av.VideoFrame], Any] = lambda frame: frame.reformat(format="yuv420p"),
) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = None
        for number in range(24):
            frame = change(av.VideoFrame.from_ndarray(draw(number), format="rgb24"))
            if stream is None:
                stream = container.add_stream(codec, rate=24, options=options or {"g": "6", "crf": "4"})
                stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, frame.format.name
                if aspect:
                    stream.codec_context.sample_aspect_ratio = aspect
                context = stream.codec_context
                context.color_trc, context.color_primaries = int(frame.color_trc), int(frame.color_primaries)
                context.colorspace, context.color_range = int(frame.colorspace), int(frame.color_range)
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path) -> tuple[VideoInfo, Written, np.ndarray, np.ndarray]:
    """The result of a probe, the whole file written as a clip, the clip's frames, and the scored frames."""
    from ea_data.run.worker import clip_entry

    found = probe(path, path.parent)
    info = found.info
    entry = clip_entry(Span(0.0, info.seconds), info, found.content, found.timeline, "test")
    record = {**asdict(info), **entry, "path": str(path), "fps_exact": str(info.fps)}
    target = path.parent / "clip.mp4"
    written = write_clip(record, path.parent, target)
    request = FrameRequest("fps", 1000)
    seen = {"place": place_of(record), "look": Look.of(record)}
    scored = read_frames(path, path.parent, 0.0, info.seconds, float(info.fps), [request], **seen)[request]
    return info, written, np.stack(list(read_all(target))), scored.pixels


@pytest.mark.parametrize("aspect", [Fraction(16, 11), Fraction(4, 3), Fraction(8, 9), Fraction(1)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_pixels_become_square(tmp_path: Path, name: str, aspect: Fraction):
    info, written, pixels, scored = cut(encode(tmp_path / name, aspect=aspect))
    width = 2 * round(WIDTH * aspect / 2)
    assert Fraction(info.sample_aspect) == aspect
    assert (info.width, info.height) == (written.width, written.height) == (width, HEIGHT)
    assert pixels.shape == scored.shape == (24, HEIGHT, width, 3)
    assert np.abs(pixels.astype(int) - scored).mean() < 3
    assert np.abs(pixels[:, :, ::8].mean((0, 1, 3)) - scored[:, :, ::8].mean((0, 1, 3))).max() < 4
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert (container.streams.video[0].sample_aspect_ratio or 1) == 1


def test_pixels_that_cannot_be_are_refused(tmp_path: Path):
    with pytest.raises(BadFile, match="16 times as wide as high"):
        probe(encode(tmp_path / "a.mp4", aspect=Fraction(16)), tmp_path)


@pytest.mark.parametrize(
    ("draw", "options", "is_interlaced"),
    [
        (fields, {"x264-params": "tff=1"}, True),
        (fields, {}, True),  # it does not say so
        (scene, {"x264-params": "tff=1"}, False),  # whole frames in an interlaced stream
        (scene, {}, False),
    ],
)
def test_interlaced_video_is_deinterlaced(
    tmp_path: Path, draw: Any, options: dict[str, str], is_interlaced: bool
):
    path = encode(tmp_path / "a.mp4", draw, options={"g": "6", "crf": "4"} | options)
    info, written, pixels, scored = cut(path)
    assert info.is_interlaced is is_interlaced
    assert (info.combing > 0) is is_interlaced
    assert written.num_frames == 24
    for frames in (pixels, scored):
        assert all(combing(gray(frame)) == 0 for frame in frames)
    # each frame is still itself, not the one before or after
    truth = np.stack([scene(number) for number in range(24)]).astype(int)
    distances = np.abs(pixels[12].astype(int) - truth).mean((1, 2, 3))
    assert int(distances.argmin()) == 12


def gray(frame: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="gray")


def test_grain_and_patterns_are_no_combs():
    chance = np.random.default_rng(0)
    grain = chance.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    board = np.indices((HEIGHT, WIDTH)).sum(0) % 2 * 255
    for pixels in (grain, np.repeat(board[..., None], 3, -1).astype(np.uint8), scene(0)):
        assert combing(gray(pixels)) == 0
    assert combing(gray(fields(0))) > 0


@pytest.mark.parametrize(("name", "number"), [("smpte2084", 16), ("arib-std-b67", 18)])
def test_high_dynamic_range_becomes_bt709(tmp_path: Path, name: str, number: int):
    from av.filter import Graph

    graph = Graph()
    start = graph.add_buffer(width=WIDTH, height=HEIGHT, format="yuv420p", time_base=Fraction(1, 24))
    said = "in_transfer=bt709:in_primaries=bt709:in_color_matrix=bt709:in_range=tv:out_range=tv"
    there = graph.add("scale", f"{said}:out_transfer={name}:out_primaries=bt2020:out_color_matrix=bt2020nc")
    form, end = graph.add("format", "yuv420p10le"), graph.add("buffersink")
    for one, other in ((start, there), (there, form), (form, end)):
        one.link_to(other)
    graph.configure()

    def change(frame: av.VideoFrame) -> Any:
        graph.push(frame.reformat(format="yuv420p", dst_colorspace="ITU709"))
        return graph.pull()

    path = encode(tmp_path / "a.mkv", codec="ffv1", options={"level": "3"}, change=change)
    truth = np.stack([scene(n) for n in range(24)]).astype(float)
    if name == "smpte2084":
        info, _, pixels, scored = cut(path)
        shown = [pixels, scored]
        with av.open(str(tmp_path / "clip.mp4")) as container:
            frame = next(container.decode(video=0))
            assert (frame.format.name, int(frame.color_trc)) == ("yuv420p", 1)
    else:  # each use of the filters builds a table for 3 seconds: once is enough for another curve
        info = probe(path, tmp_path).info
        with av.open(str(path)) as container:
            frames = Look(transfer=info.transfer).show(container.decode(video=0))
            shown = [np.stack([frame.to_ndarray(format="rgb24") for frame in frames])]
    assert info.transfer == {16: "pq", 18: "hlg"}[number]
    for pixels in shown:
        assert pixels.shape == truth.shape
        assert pixels.mean() == pytest.approx(truth.mean(), rel=0.1)
        assert pixels.std() == pytest.approx(truth.std(), rel=0.1)


def test_what_this_build_cannot_show_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ea_data.media import look

    path = encode(tmp_path / "a.mp4", aspect=Fraction(4, 3))
    monkeypatch.setattr(look, "_TO_BT709", "out_nothing=1")
    with pytest.raises(BadFile, match="cannot be shown with this build of FFmpeg"):
        list(Look(transfer="pq").show(av.open(str(path)).decode(video=0)))
