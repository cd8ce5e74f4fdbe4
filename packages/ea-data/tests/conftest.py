"""Small videos of every unusual kind, drawn when they are needed."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest

DrawFile = Callable[..., Path]
_HERE = Path(__file__).parent


def picture(number: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A frame (H, W, 3) in which a square moves; its left edge is red and its top edge blue."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 1] = 40 + seed % 60
    left = (number * 3 + 7 * seed) % (width - 20)
    frame[10:30, left : left + 20] = 255
    frame[:, :8] = (200, 0, 0)
    frame[:8] = (0, 0, 220)
    return frame


def draw_file(
    path: Path,
    num_frames: int = 60,
    fps: Fraction | int = 24,
    *,
    size: tuple[int, int] = (96, 128),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    times: Sequence[int] | None = None,
    seed: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a video. rotation: as a phone notes it, degrees clockwise. times: of the frames, in milliseconds."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.options = options or {}
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size, seed), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if rotation:
        _rotate(path, rotation)
    return path


def _rotate(path: Path, degrees: int) -> None:
    """Writes the display matrix of an mp4's track header, as phones do."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    one = 1 << 16
    a, b, c, d = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.fixture(scope="session")
def draw_video() -> DrawFile:
    """draw_video(path, num_frames=60, fps=24, size=, codec=, rotation=, times=, seed=) writes a video."""
    return draw_file


def _load(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = spec_from_file_location(name, _HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(name, module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def clips() -> ModuleType:
    """The module clips_for_tests.py."""
    return _load("clips_for_tests")


@pytest.fixture(scope="session")
def drawn_text() -> ModuleType:
    """The module text_for_tests.py; it needs matplotlib."""
    return _load("text_for_tests")
