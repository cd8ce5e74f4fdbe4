"""Frames out of videos, pictures and folders: what is read in which order, and every fault in one line."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ea_runtime.errors import UserError
from ea_runtime.video import reader
from ea_runtime.video.reader import read_frames


def picture(path: Path, level: int) -> Path:
    Image.fromarray(np.full((4, 6, 3), level, np.uint8)).save(path)
    return path


def video(path: Path, *levels: int) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 16, 8, "bgr0"
        for number, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((8, 16, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode(None))
    return path


def levels(path: Path) -> list[int]:
    frames = list(read_frames(path))
    assert all(frame.dtype == np.uint8 and frame.shape[2] == 3 for frame in frames)
    return [int(frame.mean()) for frame in frames]


def told(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_frames(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_kind_of_input(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert told(folder).startswith(f"folder '{folder}' holds no pictures (.avif, .bmp, ")
    for name, level in (("2.png", 20), ("10.PNG", 10), ("a.bmp", 30)):
        picture(folder / name, level)
    picture(folder / "b.gif", 99)
    (folder / "notes.txt").touch()
    assert levels(folder) == [10, 20, 30]
    assert levels(folder / "a.bmp") == [30]
    assert levels(folder / "b.gif") == [99]
    assert levels(video(tmp_path / "a.mkv", 10, 200, 30)) == [10, 200, 30]
    assert told(tmp_path / "gone.mp4") == f"there is no file '{tmp_path / 'gone.mp4'}'"


@pytest.mark.parametrize(
    "error",
    [
        OSError("x"),
        ValueError("x"),
        SyntaxError("x"),
        EOFError("x"),
        IndexError("x"),
        Image.DecompressionBombError("x"),
    ],
)
def test_a_damaged_picture_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: Any) -> Any:
        raise error

    monkeypatch.setattr(reader, "rgb_frames", fail)
    path = picture(tmp_path / "a.png", 1)
    assert told(path) == f"'{path}' cannot be read as a picture: x"


@pytest.mark.parametrize("error", [av.FFmpegError(1, "x"), OSError("x"), ValueError("x")])
def test_a_damaged_video_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: Any) -> Any:
        raise error

    path = video(tmp_path / "a.mkv", 1)
    monkeypatch.setattr(reader, "FrameDecoder", fail)
    assert told(path).startswith(f"'{path}' cannot be read as a video: ")
    monkeypatch.setattr(reader, "best_video", lambda _: None)
    assert told(path) == f"'{path}' holds no video"


def turned(degrees: float | None) -> Callable[[Any], list[Any]]:
    told = {} if degrees is None else {"rotation": degrees}
    return lambda packet: [SimpleNamespace(**told)] if packet.size else []


@pytest.mark.parametrize(
    ("degrees", "turns"), [(None, 0), (0, 0), (90, 1), (-90, 3), (180, 2), (270, 3), (360, 0)]
)
def test_frames_are_upright(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, degrees: float | None, turns: int
) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)

    class Reformatter:
        def reformat(self, frame: Any, format: str, threads: int) -> Any:
            assert (format, threads) == ("rgb24", 1)  # frames are small, and other processes fill the cores
            return SimpleNamespace(to_ndarray=lambda: pixels)

    path = video(tmp_path / "a.mkv", 1)
    monkeypatch.setattr(reader, "FrameDecoder", lambda _: turned(degrees))
    monkeypatch.setattr("av.video.reformatter.VideoReformatter", Reformatter)
    (found,) = read_frames(path)
    assert np.array_equal(found, np.rot90(pixels, turns))
    assert found.flags.c_contiguous
    assert (found is pixels) is (turns == 0)
