"""A contact sheet of checked clips: the prompt, some frames in order, and what the check found wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ea_data.draw.check import Checked
from ea_runtime.video.sheets import spaced, write_sheet

FRAMES = 6  # shown of each clip, spread evenly, the first and the last among them
SIDE = 96  # pixels of a frame's longer side on the sheet
GAP = 4
TEXT_HEIGHT = 16
COLUMNS = 2
_INK, _WRONG, _PAPER = (40, 40, 40), (200, 30, 30), (255, 255, 255)


def contact_sheet(clips: Sequence[tuple[Checked, np.ndarray]]) -> Image.Image:
    """One cell per clip, in two columns. Frames: uint8 (T, H, W, 3), of any sizes.

    What a clip got wrong is in red after its prompt, as "attribute: what was seen".
    """
    cell = FRAMES * (SIDE + GAP), TEXT_HEIGHT + SIDE + 3 * GAP
    rows = -(-len(clips) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (cell[0] + 4 * GAP), rows * cell[1] + GAP), _PAPER)
    for number, (checked, frames) in enumerate(clips):
        column, row = divmod(number, rows)
        _draw_cell(sheet, checked, frames, 2 * GAP + column * (cell[0] + 4 * GAP), GAP + row * cell[1])
    return sheet


def save_sheet(path: Path, clips: Sequence[tuple[Checked, np.ndarray]]) -> None:
    """Writes the contact sheet as a PNG. Raises ValueError if it cannot be written."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"`--sheet` must end in .png, got {path.name!r}")
    try:
        write_sheet(path, np.asarray(contact_sheet(clips)))
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error


def _draw_cell(sheet: Image.Image, checked: Checked, frames: np.ndarray, x: int, y: int) -> None:
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    draw.text((x, y), checked.prompt, fill=_INK, font=font)
    wrong = [
        f"{name}: {getattr(checked.verdict, name)}" for name, right in checked.right.items() if not right
    ]
    if wrong:
        start = x + draw.textlength(checked.prompt, font=font) + 2 * GAP
        draw.text((start, y), ", ".join(wrong), fill=_WRONG, font=font)
    for place, index in enumerate(spaced(len(frames), FRAMES)):
        picture = Image.fromarray(frames[index])
        scale = SIDE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
        sheet.paste(picture, (x + place * (SIDE + GAP), y + TEXT_HEIGHT))
