"""Reading windows of files: the right frames, whichever way they are reached, in the size that is wanted."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ea_data.media import reader
from ea_data.media.reader import Cut, fit, probe, read
from ea_runtime.video.reader import read_frames


@pytest.fixture(scope="module")
def long(clips: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 80 frames, 48x32."""
    return clips.write_clip(tmp_path_factory.mktemp("long") / "long.mp4", 80)


def cut(path: Path, start: int, num_frames: int, stride: int = 1, **more: object) -> Cut:
    settings: dict = {"height": 32, "width": 48, "stride": stride, **more}
    return Cut(path, path.parent.resolve(), start, num_frames, **settings)


@pytest.mark.parametrize(
    ("start", "num_frames", "stride"), [(0, 80, 1), (0, 1, 1), (30, 9, 1), (71, 9, 1), (40, 5, 7), (79, 1, 1)]
)
def test_a_window_is_the_frames_of_the_whole(
    long: Path, start: int, num_frames: int, stride: int, clips: ModuleType
) -> None:
    """Bit for bit as reading from the start gives them, with key frames and open groups in between."""
    whole = np.stack(list(read_frames(long)))
    assert len(whole) == 80
    assert [clips.number_of(f) for f in whole] == [i % 36 for i in range(80)]
    found = read(cut(long, start, num_frames, stride))
    assert np.array_equal(found, whole[start : start + (num_frames - 1) * stride + 1 : stride])


def test_a_late_window_does_not_decode_the_beginning(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points, decoded = [], []
    inner = reader._decode_from

    def counting(container: Any, stream: Any, point: Any, *more: Any) -> Any:
        points.append(point)
        frames = inner(container, stream, point, *more)
        return frames and (decoded.append(1) or frame for frame in frames)

    monkeypatch.setattr(reader, "_decode_from", counting)
    read(cut(long, 70, 4))
    assert len(points) == 1
    assert points[0] is not None
    assert len(decoded) <= 5
    read(cut(long, 3, 4))
    assert points[1:] == [None]


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".gif", ".h264"])
def test_other_containers(suffix: str, clips: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / f"clip{suffix}"
    if suffix == ".gif":
        pictures = [Image.fromarray(clips.frame(i)) for i in range(30)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:])
    else:
        clips.write_clip(path, 40, bf="0")
    assert probe(path, tmp_path) == (48, 32, 30 if suffix == ".gif" else 40)
    for start in (0, 27):
        assert [clips.number_of(f) for f in read(cut(path, start, 3))] == [start, start + 1, start + 2]


def test_probing(long: Path, clips: ModuleType, tmp_path: Path) -> None:
    assert probe(long, long.parent) == (48, 32, 80)
    assert probe(long, long.parent, with_size=False).num_frames == 80
    assert probe(clips.write_picture(tmp_path / "a.png"), tmp_path) == (48, 32, 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(clips.frame(0)).save(tmp_path / "side.jpg", exif=exif)
    assert probe(tmp_path / "side.jpg", tmp_path) == (32, 48, 1)
    assert read(cut(tmp_path / "side.jpg", 0, 1, height=48, width=32, says=(32, 48))).shape == (1, 48, 32, 3)


def test_a_turned_video_is_upright(clips: ModuleType, tmp_path: Path) -> None:
    import av

    source = clips.write_clip(tmp_path / "flat.mp4", 10)
    path = tmp_path / "turned.mp4"
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        stream.set_display_rotation(90)
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    assert probe(path, tmp_path) == (32, 48, 10)
    assert read(cut(path, 0, 2, height=48, width=32, says=(32, 48))).shape == (2, 48, 32, 3)


def test_resizing() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (32, 64, 3)).copy()
    assert fit(ramp, 32, 64) is ramp
    assert fit(ramp, 16, 32).shape == (16, 32, 3)
    # a square of a wide picture: its middle, or the end that is asked for
    middle, left, right = (
        fit(ramp, 32, 32, place).astype(float) for place in ((0.5, 0.5), (0.5, 0.0), (0.5, 1.0))
    )
    assert np.array_equal(left, ramp[:, :32])
    assert np.array_equal(right, ramp[:, 32:])
    assert np.array_equal(middle, ramp[:, 16:48])
    assert abs(fit(ramp, 8, 16).astype(float).mean() - ramp.mean()) < 1.0
    assert fit(ramp, 64, 32).shape == (64, 32, 3)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("gone.mp4", None, "it cannot be read: there is no such file"),
        ("empty.mp4", b"", "it cannot be read"),
        ("noise.mp4", bytes(2000), "it cannot be read"),
        ("noise.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "it cannot be read"),
        ("text.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "it cannot be read"),
        ("list.mp4", b"ffconcat version 1.0\nfile 'long.mp4'\n", "it cannot be read"),
        (
            "hls.mp4",
            b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nlong.mp4\n#EXT-X-ENDLIST\n",
            "it cannot be read",
        ),
    ],
)
def test_files_that_are_none(name: str, content: bytes | None, expected: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for action in (lambda: read(cut(tmp_path / name, 0, 1)), lambda: probe(tmp_path / name, tmp_path)):
        with pytest.raises(ValueError, match=r"^it ") as caught:
            action()
        assert expected in str(caught.value) or "there is no such file" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_regular_file_and_links(long: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")  # would block who opens it
    (tmp_path / "out.mp4").symlink_to(long)
    for name in ("folder.mp4", "pipe.mp4"):
        with pytest.raises(ValueError, match="it"):
            read(cut(tmp_path / name, 0, 1))
    with pytest.raises(ValueError, match="it is a link that leaves the set"):
        read(cut(tmp_path / "out.mp4", 0, 1))


def test_what_an_entry_says_is_checked(long: Path) -> None:
    with pytest.raises(ValueError, match="it is 48x32, but its entry says 64x64; correct the entry"):
        read(cut(long, 0, 1, says=(64, 64)))
    with pytest.raises(ValueError, match="it has no frame 80"):
        read(cut(long, 72, 9))


def test_damage_is_an_error_where_it_should_be(clips: ModuleType, tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "a.mp4", 24, crf="18")
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + len(data) // 3
    data[at : at + 60] = bytes(x ^ 0x5A for x in data[at : at + 60])
    path.write_bytes(data)
    with pytest.raises(ValueError, match="it cannot be read"):
        read(cut(path, 0, 24))
    assert read(cut(path, 0, 24, strict=False)).shape == (24, 32, 48, 3)
