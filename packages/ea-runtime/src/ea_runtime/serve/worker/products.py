"""Pictures that go with a video: a thumbnail, and a sheet of its frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ea_runtime.files.atomic import atomic_file
from ea_runtime.video.marks import Marks
from ea_runtime.video.reader import read_frames
from ea_runtime.video.sheets import frame_grid, spaced

THUMBNAIL, SHEET = "thumbnail.webp", "spritesheet.jpg"
#: pixels of the thumbnail's longer side, and of the sheet's
MAX_THUMBNAIL, MAX_SHEET = 512, 2048
_SHEET_FRAMES, _SHEET_COLUMNS = 16, 4
_QUALITY = 85


def make_products(video: Path, num_frames: int) -> dict[str, str]:
    """Writes the pictures next to a video or picture; their file names by what they are.

    Of a video the thumbnail shows the frame in the middle, the sheet up to 16 frames, evenly spaced, row by row. Both
    are marked as made by AI. Raises UserError if the video cannot be read, OSError if a picture cannot be written.
    """
    wanted = spaced(num_frames, _SHEET_FRAMES)
    columns = min(_SHEET_COLUMNS, len(wanted))
    rows = -(-len(wanted) // columns)
    middle = num_frames // 2
    cells: list[np.ndarray] = []
    thumbnail: Image.Image | None = None
    for number, frame in enumerate(read_frames(video)):
        if number == middle:
            thumbnail = _fitted(frame, MAX_THUMBNAIL, MAX_THUMBNAIL)
        if number in wanted:
            cells.append(np.asarray(_fitted(frame, MAX_SHEET // columns, MAX_SHEET // rows)))
    assert thumbnail is not None, "the video has as many frames as were made"
    _save(thumbnail, video.with_name(THUMBNAIL), format="WEBP", quality=_QUALITY)
    sheet = Image.fromarray(frame_grid(cells, columns, gap=0))
    _save(sheet, video.with_name(SHEET), format="JPEG", quality=_QUALITY)
    return {"thumbnail": THUMBNAIL, "spritesheet": SHEET}


def _fitted(frame: np.ndarray, width: int, height: int) -> Image.Image:
    """A frame (H, W, 3) within a size, its shape kept; never enlarged."""
    picture = Image.fromarray(frame)
    picture.thumbnail((width, height), Image.Resampling.LANCZOS)
    return picture


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    with atomic_file(path) as partial:
        picture.save(partial, xmp=Marks().xmp(), **options)
