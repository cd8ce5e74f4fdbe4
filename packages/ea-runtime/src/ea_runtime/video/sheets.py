"""Contact sheets: pictures that show at a glance what a model makes, and how it moves."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ea_runtime.files.atomic import atomic_file

#: A contact sheet shows at most so many frames, in rows of so many, so far apart (pixels).
SHEET_FRAMES, SHEET_COLUMNS, SHEET_GAP = 16, 4, 2


def frame_grid(frames: list[np.ndarray], columns: int = SHEET_COLUMNS, gap: int = SHEET_GAP) -> np.ndarray:
    """Frames (H, W, 3) side by side, row by row, with white gaps; a single frame as it is."""
    if len(frames) == 1:
        return frames[0]
    height, width = frames[0].shape[:2]
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, frame in enumerate(frames):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet


#: Frames of a video that a sheet shows, at most; evenly spaced, first and last among them.
MAX_FRAMES = 9
_GAP, _LINE, _PAPER, _INK = 4, 12, 255, 0


def contact_sheet(videos: np.ndarray, captions: Sequence[str] = (), columns: int = 0) -> np.ndarray:
    """One picture of some videos: each a strip of frames from left to right, its caption above.

    videos: uint8 (N, T, H, W, 3); T is 1 for pictures. captions: N lines or none. columns: strips side by side;
    0: one for videos, a square for pictures.
    Returns uint8 (H', W', 3). Raises ValueError for other shapes, types or a wrong number of captions.
    """
    if videos.ndim != 5 or videos.shape[-1] != 3 or videos.dtype != np.uint8 or 0 in videos.shape:
        raise ValueError(
            f"`videos` must be uint8 (N, T, H, W, 3), none of them 0, got {videos.dtype} {videos.shape}"
        )
    count, length, height, width, _ = videos.shape
    if captions and len(captions) != count:
        raise ValueError(f"`captions` must be {count} lines, one a video, or none, got {len(captions)}")
    chosen = np.linspace(0, length - 1, min(length, MAX_FRAMES)).round().astype(int)
    strip_width = len(chosen) * (width + 1) - 1
    columns = min(count, columns or (1 if length > 1 else int(np.ceil(np.sqrt(count)))))
    font = ImageFont.load_default()
    texts = [_wrap(text, strip_width, font) for text in captions]
    head = max((_LINE * len(lines) + 2 for lines in texts), default=0)
    rows = -(-count // columns)
    size = (columns * (strip_width + _GAP) + _GAP, rows * (head + height + _GAP) + _GAP)
    sheet = Image.new("RGB", size, (_PAPER,) * 3)
    draw = ImageDraw.Draw(sheet)
    for place in range(count):
        row, column = divmod(place, columns)
        left, top = _GAP + column * (strip_width + _GAP), _GAP + row * (head + height + _GAP)
        for number, text in enumerate(texts[place] if texts else []):
            draw.text((left, top + number * _LINE), text, fill=(_INK,) * 3, font=font)
        for number, frame in enumerate(chosen):
            sheet.paste(Image.fromarray(videos[place, frame]), (left + number * (width + 1), top + head))
    return np.asarray(sheet)  # (H', W', 3)


def write_sheet(path: Path, array: np.ndarray) -> None:
    """Writes a picture, uint8 (H, W, 3), as a PNG that appears whole or not at all; makes its folder.

    Raises ValueError for another shape or type, OSError where it cannot be written.
    """
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(f"a sheet must be uint8 (H, W, 3), got {array.dtype} {array.shape}")
    with atomic_file(path) as partial:
        Image.fromarray(array).save(partial, format="PNG")


def _wrap(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """At most three lines that fit `width` pixels; the rest is cut."""
    letters = max(1, int(width / max(1.0, font.getlength("n"))))
    lines = textwrap.wrap(" ".join(text.split()), letters)
    if len(lines) > 3:
        lines = [*lines[:2], lines[2][: max(1, letters - 2)] + ".."]
    return lines
