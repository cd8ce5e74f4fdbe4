"""Which stream is the video, what ends a stream, and what transparency becomes: each rule alone."""

from __future__ import annotations

from enum import IntFlag
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from ea_runtime.video.streams import FrameDecoder, best_video, has_alpha


class Disposition(IntFlag):
    """PyAV's, as far as it matters here."""

    none = 0
    default = 1
    attached_pic = 2
    timed_thumbnails = 4
    still_image = 8


def stream(
    index: int, frames: int = 0, size: tuple[int, int] | None = (4, 6), kind: Disposition = Disposition.none
) -> Any:
    context = None if size is None else SimpleNamespace(width=size[0], height=size[1], name="h264")
    return SimpleNamespace(index=index, frames=frames, codec_context=context, disposition=kind, metadata={})


def best(*streams: Any) -> Any:
    found = best_video(SimpleNamespace(streams=SimpleNamespace(video=list(streams))))
    return None if found is None else found.index


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({}, {"size": None}),  # one that can be decoded, whatever else
        ({"frames": 1}, {"size": None, "frames": 9, "kind": Disposition.default}),
        ({"frames": 2}, {"frames": 1, "kind": Disposition.default}),
        ({"frames": 0}, {"frames": 1, "kind": Disposition.default}),  # an unknown number
        ({"kind": Disposition.default}, {"size": (40, 60)}),
        ({"size": (4, 7)}, {"size": (4, 6)}),
        ({"size": (5, 6)}, {"size": (4, 7)}),
        ({"size": (5, 5)}, {"size": (8, 3)}),
        ({}, {"kind": Disposition.attached_pic | Disposition.default}),
        ({}, {"kind": Disposition.timed_thumbnails | Disposition.default}),
        ({}, {"kind": Disposition.still_image | Disposition.default}),
    ],
)
def test_of_two_streams_one_is_the_video(better: dict[str, Any], worse: dict[str, Any]) -> None:
    assert best(stream(1, **better), stream(0, **worse)) == 1
    assert best(stream(0, **worse), stream(1, **better)) == 1


def test_of_equal_streams_the_first_is_the_video() -> None:
    assert best(stream(1), stream(0), stream(2)) == 0
    assert best(stream(1, size=None), stream(0, size=None)) == 0
    assert best() is best(stream(0, kind=Disposition.attached_pic)) is None


def decoder(decode: Any, **more: Any) -> FrameDecoder:
    one = stream(0)
    one.codec_context.decode = decode
    return FrameDecoder(one, **more)


def test_what_reaches_the_decoder() -> None:
    """Packets, and the end; but no note of a frame that the container left out."""
    seen: list[Any] = []
    opaque = SimpleNamespace(format=SimpleNamespace(has_palette=False, components=[]))
    decode = decoder(lambda packet: (seen.append(packet), [opaque])[1])
    packet = SimpleNamespace(size=9, dts=1, pts=1)
    assert decode(packet) == [opaque]
    for dts, pts in ((1, 1), (None, 1), (1, None)):
        assert decode(SimpleNamespace(size=0, dts=dts, pts=pts)) == []
    assert decode(SimpleNamespace(size=0, dts=None, pts=None)) == [opaque]
    assert decode(None) == [opaque]
    assert seen == [packet, None, None]
    assert decode.saw_alpha is False


def test_formats_with_transparency() -> None:
    formats = {"rgb24": False, "yuv420p": False, "rgba": True, "yuva420p": True, "pal8": True}
    found = {name: has_alpha(SimpleNamespace(format=av.VideoFormat(name, 8, 8))) for name in formats}
    assert found == formats


@pytest.mark.parametrize("background", [None, (0, 100, 200)])
def test_transparency_is_laid_on_the_background(background: tuple[int, int, int] | None) -> None:
    """uint8, rounded to the nearest, in rows that FFmpeg pads."""
    pixels = np.random.default_rng(1).integers(0, 256, (60, 45, 4), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgba")
    frame.pts = 7
    decode = decoder(lambda _: [frame], **({} if background is None else {"background": background}))
    (found,) = decode(None)
    alpha = pixels[..., 3:].astype(int)
    exact = pixels[..., :3].astype(int) * alpha + np.array(background or (255, 255, 255)) * (255 - alpha)
    assert np.array_equal(found.to_ndarray(), (2 * exact + 254) // 510)
    assert (found.format.name, found.pts, decode.saw_alpha) == ("rgb24", 7, True)
    pixels[..., 3] = 255
    decode = decoder(lambda _: [av.VideoFrame.from_ndarray(pixels, format="rgba")])
    assert np.array_equal(decode(None)[0].to_ndarray(), pixels[..., :3])
    assert decode.saw_alpha is False


@pytest.mark.parametrize(
    ("name", "mode", "asked"),
    [
        ("vp8", "1", "libvpx"),
        ("vp9", "1", "libvpx-vp9"),
        ("vp9", "0", None),
        ("vp9", None, None),
        ("h264", "1", None),
    ],
)
def test_the_decoder_that_sees_transparency(
    monkeypatch: pytest.MonkeyPatch, name: str, mode: str | None, asked: str | None
) -> None:
    made: list[Any] = []

    def create(*given: str) -> Any:
        made.append(given)
        return SimpleNamespace(decode=lambda packet: [])

    monkeypatch.setattr(av, "CodecContext", SimpleNamespace(create=create))
    one = stream(0)
    one.codec_context = SimpleNamespace(name=name, extradata=b"x", thread_count=3)
    one.metadata = {} if mode is None else {"alpha_mode": mode}
    decode = FrameDecoder(one)
    assert made == ([] if asked is None else [(asked, "r")])
    context = decode._context
    assert (context is one.codec_context) is (asked is None)
    assert (context.extradata, context.thread_count) == (b"x", 3)


@pytest.mark.parametrize("error", [av.FFmpegError(1, "no"), ValueError("no codec")])
def test_decoders_that_this_build_lacks(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def create(*_: str) -> Any:
        raise error

    monkeypatch.setattr(av, "CodecContext", SimpleNamespace(create=create))
    one = stream(0)
    one.codec_context.name, one.metadata = "vp9", {"alpha_mode": "1"}
    with pytest.raises(ValueError, match="this build of FFmpeg cannot read the transparency of its video"):
        FrameDecoder(one)
    with pytest.raises(ValueError, match="this build of FFmpeg has no decoder for its video"):
        FrameDecoder(stream(0, size=None))
