from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from ea_data.media.cut import write_clip
from ea_data.media.frames import read_frames, select
from ea_data.media.probe import BadFile, probe
from ea_data.media.source import check_root, find_files
from ea_data.protocols import FrameRequest
from ea_runtime.errors import UserError
from ea_runtime.video.reader import read_frames as read_all

ALL = FrameRequest("fps", 1000)
DrawFile = Callable[..., Path]


# -- which files


def test_candidates_in_order_and_the_rest_counted(tmp_path: Path):
    root, outside = tmp_path / "raw", tmp_path / "outside.mp4"
    (root / "b").mkdir(parents=True)
    outside.write_bytes(b"x")
    for name in (
        "b/1.mkv",
        "a.mp4",
        "影片 ü.MOV",
        "x" * 251 + ".mp4",
        ".hidden.mp4",
        "c.mp4.part",
        "d.crdownload",
        "n.txt",
        "p.JPG",
    ):
        (root / name).write_bytes(b"x")
    (root / "link.mp4").symlink_to(root / "a.mp4")
    (root / "out.mp4").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "gone.mp4").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe.mp4")
    skipped: Counter[str] = Counter()
    found = [one.source for one in find_files(root, skipped, pictures=False)]
    assert found == ["a.mp4", "b/1.mkv", "x" * 251 + ".mp4", "影片 ü.MOV"]
    assert skipped == {
        "hidden": 1,
        "partial": 2,
        "other": 1,
        "picture": 1,
        "link": 2,
        "link_out": 2,
        "special": 1,
    }


def test_the_root_must_be_a_folder(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        check_root(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        check_root(tmp_path / "file")


# -- what is in them


def test_a_plain_video(tmp_path: Path, draw_video: DrawFile):
    path = draw_video(tmp_path / "a.mp4", 30, Fraction(30000, 1001))
    found = probe(path, tmp_path)
    info = found.info
    assert (info.width, info.height, info.fps, info.num_frames) == (128, 96, Fraction(30000, 1001), 30)
    assert (info.codec, info.rotation, info.is_variable_rate, info.is_picture) == ("h264", 0, False, False)
    assert info.seconds == pytest.approx(1.001)
    assert len(found.content) == 64


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_phone_video_is_upright(tmp_path: Path, draw_video: DrawFile, rotation: int):
    path = draw_video(tmp_path / "a.mp4", 24, rotation=rotation)
    plain = draw_video(tmp_path / "b.mp4", 24)
    info = probe(path, tmp_path).info
    assert (info.width, info.height) == ((96, 128) if rotation != 180 else (128, 96))
    lying = read_frames(plain, tmp_path, 0, 1, 24, [ALL])[ALL].pixels
    found = read_frames(path, tmp_path, 0, 1, 24, [ALL])[ALL].pixels
    assert np.array_equal(found, np.rot90(lying, -rotation // 90, axes=(1, 2)))
    # the written clip needs no rotation
    out = tmp_path / "out.mp4"
    written = write_clip(_record(path, info, 0.0, 0.5), tmp_path, out)
    assert (written.width, written.height, written.num_frames) == (info.width, info.height, 12)
    assert np.abs(_read(out).astype(int) - found[:12]).mean() < 1


def test_a_variable_rate(tmp_path: Path, draw_video: DrawFile):
    times = np.cumsum([33 if number % 5 else 150 for number in range(60)]).tolist()
    path = draw_video(tmp_path / "a.mp4", 60, 30, times=times)
    info = probe(path, tmp_path).info
    assert info.is_variable_rate
    assert info.num_frames == 60
    assert float(info.fps) == pytest.approx(59 / (times[-1] - times[0]) * 1000, rel=0.01)
    out = tmp_path / "out.mp4"
    written = write_clip(_record(path, info, 0.0, info.seconds), tmp_path, out)
    assert written.num_frames == pytest.approx(info.seconds * float(info.fps), abs=1.5)
    assert not probe(out, tmp_path).info.is_variable_rate


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mkv", "ffv1", "yuv444p"),
        ("a.mov", "mjpeg", "yuvj420p"),
        ("a.ts", "libx264", "yuv420p"),
    ],
)
def test_other_codecs_and_odd_sides(
    tmp_path: Path, draw_video: DrawFile, name: str, codec: str, pix_fmt: str
):
    size = (97, 129) if codec == "ffv1" else (96, 128)
    path = draw_video(tmp_path / name, 60, codec=codec, pix_fmt=pix_fmt, size=size)
    info = probe(path, tmp_path).info
    assert (info.height, info.width, info.num_frames, info.fps) == (*size, 60, 24)
    everything = _read(path)
    assert np.array_equal(read_frames(path, tmp_path, 1.0, 2.0, 24, [ALL])[ALL].pixels, everything[24:48])
    out = tmp_path / "out.mp4"
    written = write_clip(_record(path, info, 1.0, 2.0), tmp_path, out)
    assert (written.width, written.height, written.num_frames) == (128, 96, 24)
    assert np.abs(_read(out).astype(int) - everything[24:48, :96, :128]).mean() < 2


def test_what_cannot_be_used_is_told_in_a_line(tmp_path: Path, draw_video: DrawFile):
    whole = draw_video(tmp_path / "whole.mp4", 24).read_bytes()
    draw_video(tmp_path / "one.mp4", 1)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), format="fltp", layout="stereo")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    told = {}
    for path in sorted(tmp_path.iterdir()):
        if path.name != "whole.mp4":
            with pytest.raises(BadFile) as error:
                probe(path, tmp_path)
            told[path.name] = str(error.value)
    damaged = "it cannot be read: Invalid data found when processing input"
    assert told == {
        "concat.mp4": "it cannot be read: Invalid argument",
        "cut.mp4": damaged,
        "empty.mp4": "it is empty",
        "list.mp4": damaged,
        "one.mp4": "it holds a single frame",
        "picture.png": told["picture.png"],
        "sound.mp4": "it holds no video",
        "text.mp4": damaged,
    }
    assert told["picture.png"].startswith("it cannot be read")


def test_frames_larger_than_allowed_are_refused(tmp_path: Path, draw_video: DrawFile):
    path = draw_video(tmp_path / "a.mp4", 4)
    with pytest.raises(BadFile, match="128x96 are larger than the 12,000 pixels"):
        probe(path, tmp_path, max_pixels=12_000)


def test_nothing_outside_the_root_is_opened(tmp_path: Path, draw_video: DrawFile):
    path = draw_video(tmp_path / "a.mp4", 4)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.mp4").symlink_to(path)
    with pytest.raises(BadFile, match="leaves"):
        probe(tmp_path / "root" / "link.mp4", tmp_path / "root")


# -- frames


def test_one_pass_serves_all_requests(tmp_path: Path, draw_video: DrawFile, monkeypatch: pytest.MonkeyPatch):
    path = draw_video(tmp_path / "a.mp4", 72, options={"g": "12"})
    everything = _read(path)
    requests = [
        FrameRequest("fps", 4),
        FrameRequest("fps", 4, 64, "gray"),
        FrameRequest("even", 4, 64),
        FrameRequest("even", 4, offset=0.0),
        FrameRequest("stride", 2),
        FrameRequest("middle"),
        FrameRequest("none"),
    ]
    opened = []
    monkeypatch.setattr("ea_data.media.frames.open_window", _counting(opened))
    found = read_frames(path, tmp_path, 1.0, 2.5, 24, requests)
    assert len(opened) == 1
    expected = [
        range(24, 60, 6),
        range(24, 60, 6),
        (28, 37, 46, 55),
        (24, 33, 42, 51),
        range(24, 60, 12),
        [42],
        [],
    ]
    for request, numbers in zip(requests, expected, strict=True):
        pixels = found[request].pixels
        assert np.allclose(found[request].seconds, [number / 24 - 1 for number in numbers])
        if not request.max_side and request.mode != "none":
            assert np.array_equal(pixels, everything[list(numbers)])
    assert found[requests[1]].pixels.shape == (6, 48, 64)
    assert found[requests[2]].pixels.shape == (4, 48, 64, 3)
    assert found[requests[6]].pixels.shape[0] == 0


@pytest.mark.parametrize(
    ("request_", "count", "expected"),
    [
        (FrameRequest("fps", 4), 24, [0, 6, 12, 18]),
        (FrameRequest("fps", 100), 3, [0, 1, 2]),
        (FrameRequest("fps", 1), 1, [0]),
        (FrameRequest("stride", 2), 25, [0, 12, 24]),
        (FrameRequest("stride", 2), 5, [0, 4]),
        (FrameRequest("stride", 2), 1, [0]),
        (FrameRequest("even", 4), 2, [0, 1]),
        (FrameRequest("even", 1), 9, [4]),
        (FrameRequest("middle"), 10, [5]),
    ],
)
def test_which_frames_a_request_means(request_: FrameRequest, count: int, expected: list[int]):
    assert select(request_, np.arange(count) / 24, 24).tolist() == expected


def test_a_span_takes_each_frame_once(tmp_path: Path, draw_video: DrawFile):
    path = draw_video(tmp_path / "a.mkv", 60, Fraction(30000, 1001))  # a clock of milliseconds
    fps = 30000 / 1001
    cuts = [number / fps for number in (0, 17, 18, 40, 60)]
    pieces = [
        read_frames(path, tmp_path, start, end, fps, [ALL])[ALL].pixels for start, end in pairwise(cuts)
    ]
    assert [len(piece) for piece in pieces] == [17, 1, 22, 20]
    assert np.array_equal(np.concatenate(pieces), _read(path))


def test_strict_decoding_finds_what_would_be_concealed(tmp_path: Path, draw_video: DrawFile):
    path = draw_video(tmp_path / "a.mp4", 24, size=(48, 64))
    data = path.read_bytes()
    whole = _read(path)
    start = data.index(b"mdat") + 700
    found = []
    for at in range(start, start + 300, 10):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
        verdicts = []
        for strict in (False, True):
            try:
                pixels = read_frames(path, tmp_path, 0, 1, 24, [ALL], strict=strict)[ALL].pixels
                verdicts.append("same" if np.array_equal(pixels, whole) else "silently other")
            except BadFile:
                verdicts.append("refused")
        found.append(tuple(verdicts))
    # without it, damage passes for pictures; with it, it is reported more often, though not always
    assert ("silently other", "refused") in found
    assert ("refused", "silently other") not in found


# -- files


def test_equal_clips_are_equal_files(tmp_path: Path, draw_video: DrawFile):
    path = draw_video(tmp_path / "a.mp4", 48)
    info = probe(path, tmp_path).info
    for name in ("one.mp4", "two.mp4"):
        write_clip(_record(path, info, 0.5, 1.5), tmp_path, tmp_path / "clips" / name)
    one, two = ((tmp_path / "clips" / name).read_bytes() for name in ("one.mp4", "two.mp4"))
    assert one == two
    assert [file.name for file in sorted((tmp_path / "clips").iterdir())] == ["one.mp4", "two.mp4"]


def test_a_whole_file_is_copied_bit_by_bit(tmp_path: Path, draw_video: DrawFile):
    path = draw_video(tmp_path / "a.mp4", 48)
    info = probe(path, tmp_path).info
    written = write_clip(_record(path, info, 0.0, 2.0) | {"is_whole": True}, tmp_path, tmp_path / "out.mp4")
    assert (written.width, written.height, written.num_frames) == (128, 96, 48)
    assert np.array_equal(_read(tmp_path / "out.mp4"), _read(path))


def _record(path: Path, info, start: float, end: float) -> dict:
    from ea_data.media.probe import timeline_of

    timeline = timeline_of(path, path.parent)
    numbers = timeline.window(start, end, float(info.fps))
    names = ("rotation", "is_picture", "codec", "is_variable_rate", "width", "height")
    names = (*names, "sample_aspect", "is_interlaced", "transfer", "bars", "is_cropped")
    told = {name: getattr(info, name) for name in names}
    first, after = timeline.span(numbers, info.fps)
    return {
        "path": str(path),
        "start": start,
        "end": end,
        "start_pts": first,
        "end_pts": after,
        "start_frame": numbers.start,
        "num_frames": len(numbers),
        "is_counted": timeline.is_counted,
        "fps_exact": str(info.fps),
        "is_whole": False,
        **told,
    }


def _read(path: Path) -> np.ndarray:
    return np.stack(list(read_all(path)))


def _counting(opened: list):
    from ea_data.media import frames

    real = frames.open_window

    def open_window(*args, **options):
        opened.append(args)
        return real(*args, **options)

    return open_window
