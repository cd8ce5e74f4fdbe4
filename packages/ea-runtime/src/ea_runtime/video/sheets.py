"""Contact sheets: pictures that show at a glance what a model makes, and how it moves."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ea_runtime.files.atomic import atomic_file

#: Most frames on a contact sheet, frames per row, and the gap between them in pixels.
SHEET_FRAMES, SHEET_COLUMNS, SHEET_GAP = 16, 4, 2


def spaced(total: int, count: int) -> list[int]:
    """At most `count` indices below `total`, evenly spaced, first and last among them."""
    count = min(count, total)
    return [round(i * (total - 1) / max(1, count - 1)) for i in range(count)]


def frame_grid(
    frames: Sequence[np.ndarray], columns: int = SHEET_COLUMNS, gap: int = SHEET_GAP, paper: int = 255
) -> np.ndarray:
    """Pictures (H, W, 3) side by side, row by row, `gap` pixels apart, on `paper`; a single one unchanged.

    A row is as tall as its tallest picture, a column as wide as its widest.
    """
    if len(frames) == 1:
        return frames[0]
    rows = [frames[start : start + columns] for start in range(0, len(frames), columns)]
    tops = _starts([max(frame.shape[0] for frame in row) for row in rows], gap)
    lefts = _starts([max(row.shape[1] for row in frames[i::columns]) for i in range(len(rows[0]))], gap)
    sheet = np.full((tops[-1] - gap, lefts[-1] - gap, 3), paper, np.uint8)
    for top, row in zip(tops, rows, strict=False):
        for left, frame in zip(lefts, row, strict=False):
            sheet[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return sheet


def _starts(sizes: list[int], gap: int) -> list[int]:
    """Where each of these starts, and where one more would."""
    return [0, *accumulate(size + gap for size in sizes)]


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
    count, length, height = videos.shape[:3]
    if captions and len(captions) != count:
        raise ValueError(f"`captions` must be {count} lines, one a video, or none, got {len(captions)}")
    chosen = spaced(length, MAX_FRAMES)
    strips = [frame_grid(video[chosen], MAX_FRAMES, gap=1) for video in videos]
    strip_width = strips[0].shape[1]
    columns = min(count, columns or (1 if length > 1 else int(np.ceil(np.sqrt(count)))))
    font = ImageFont.load_default()
    texts = [_wrap(text, strip_width, font) for text in captions]
    head = max((_LINE * len(lines) + 2 for lines in texts), default=0)
    cells = [np.pad(strip, ((head, 0), (0, 0), (0, 0)), constant_values=_PAPER) for strip in strips]
    framed = np.pad(
        frame_grid(cells, columns, _GAP), ((_GAP,) * 2, (_GAP,) * 2, (0, 0)), constant_values=_PAPER
    )
    sheet = Image.fromarray(framed)
    draw = ImageDraw.Draw(sheet)
    for place, lines in enumerate(texts):
        row, column = divmod(place, columns)
        left, top = _GAP + column * (strip_width + _GAP), _GAP + row * (head + height + _GAP)
        for number, text in enumerate(lines):
            draw.text((left, top + number * _LINE), text, fill=(_INK,) * 3, font=font)
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
