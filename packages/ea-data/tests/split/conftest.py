"""Short videos with known cuts for the tests of splitters."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ea_data.draw.raw import RawScene, render_scene
from ea_data.protocols import VideoInfo
from ea_runtime.video.output import write_video

HEIGHT, WIDTH, FPS = 144, 256, 24


def shot(seed: int, num_frames: int, hue: int, speed: float = 0.04) -> np.ndarray:
    """A calm pan: uint8 (T, HEIGHT, WIDTH, 3)."""
    scene = RawScene((seed, 7, 7), num_frames, speed, "right", hue, "scenes")
    return np.stack(list(render_scene(scene, HEIGHT, WIDTH, FPS)))


def dissolve(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    share = (np.arange(1, len(one) + 1, dtype=np.float32) / (len(one) + 1))[:, None, None, None]
    return np.rint(one * (1 - share) + other * share).astype(np.uint8)


def wipe(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """From the left; the last columns change with the frame after."""
    out = one.copy()
    for number in range(len(one)):
        edge = WIDTH * (number + 1) // (len(one) + 1)
        out[number, :, :edge] = other[number, :, :edge]
    return out


def flash(frames: np.ndarray, *places: int, length: int = 2) -> np.ndarray:
    out = frames.copy()
    for place in places:
        lit = out[place : place + length].astype(np.float32)
        out[place : place + length] = np.rint(lit * 0.2 + 255 * 0.8)
    return out


def write(path: Path, *pieces: np.ndarray, fps: int = FPS) -> tuple[Path, VideoInfo]:
    frames = [frame for piece in pieces for frame in piece]
    write_video(path, frames, fps)
    info = VideoInfo(path, WIDTH, HEIGHT, Fraction(fps), len(frames) / fps, len(frames), "h264")
    return path, info


@pytest.fixture(scope="session")
def films() -> SimpleNamespace:
    """The functions of this module, and FPS."""
    return SimpleNamespace(shot=shot, dissolve=dissolve, wipe=wipe, flash=flash, write=write, fps=FPS)
