"""Small files for tests of reading: each frame shows its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image


def frame(number: int, height: int = 32, width: int = 48) -> np.ndarray:
    """(H, W, 3) uint8: a brightness that gives the number (steps of 6), and a mark at the top left."""
    pixels = np.full((height, width, 3), 20 + number % 36 * 6, dtype=np.uint8)
    pixels[: height // 4, : width // 4] = (200, 40, 40)
    return pixels


def number_of(pixels: np.ndarray) -> int:
    """The number of a frame, modulo 36, from its lower right quarter."""
    height, width = pixels.shape[:2]
    return round((float(pixels[height // 2 :, width // 2 :].mean()) - 20) / 6)


def write_clip(path: Path, num_frames: int, height: int = 32, width: int = 48, **options: Any) -> Path:
    """An H.264 file with a key frame every 12 and frames that refer to later ones."""
    settings = {
        "g": "12",
        "bf": "3",
        "crf": "1",
        "preset": "ultrafast",
        "x264-params": "scenecut=0:open-gop=1",
    }
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={**settings, **options})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for number in range(num_frames):
            picture = av.VideoFrame.from_ndarray(frame(number, height, width), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def write_picture(path: Path, height: int = 32, width: int = 48, number: int = 0) -> Path:
    Image.fromarray(frame(number, height, width)).save(path)
    return path


def write_list(folder: Path, *rows: dict[str, Any]) -> Path:
    full = [
        {"text": f"sample {i}", "type": "video" if row["file_path"].endswith(".mp4") else "image", **row}
        for i, row in enumerate(rows)
    ]
    (folder / "dataset.json").write_text(json.dumps(full))
    return folder
