"""A clip as a strip of frames with the scorers' findings drawn in: text boxes and the motion field."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ea_runtime.video.sheets import frame_grid

#: Frames of a strip, in rows of two; the width of one; JPEG quality.
FRAMES, ACROSS, WIDTH, QUALITY = 4, 2, 268, 78
_BOX, _ARROW = (255, 64, 64), (64, 220, 255)


def paint(frames: np.ndarray, seconds: Sequence[float], row: dict[str, Any]) -> bytes:
    """JPEG of the frames, in rows of two, with the boxes and vectors of `row`'s scores.

    frames: uint8 (N, H, W, 3); seconds: their times within the clip. Boxes have the time of
    their frame; they are drawn into the nearest shown frame.
    """
    height, width = frames.shape[1:3]
    tall = max(1, round(WIDTH * height / width))
    tiles = [Image.fromarray(frame).resize((WIDTH, tall), Image.Resampling.BILINEAR) for frame in frames]
    for found in looked_at(row):
        _boxes(tiles[_nearest(seconds, found["second"])], found["boxes"])
    for score in (row.get("scores") or {}).values():
        detail = score.get("detail") or {}
        if detail.get("flow"):
            _vectors(tiles[_nearest(seconds, detail["flow"]["second"])], detail["flow"])
    sheet = Image.fromarray(frame_grid([np.asarray(tile) for tile in tiles], ACROSS, gap=0, paper=0))
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def looked_at(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The frames in which a scorer looked for text, second and boxes of each; empty if none did."""
    return _of_text(row).get("frames", [])


def num_samples(row: dict[str, Any]) -> int:
    """The number of frames, spread evenly, among which those of `looked_at` are."""
    return _of_text(row).get("samples") or len(looked_at(row))


def text_read(row: dict[str, Any]) -> str:
    """The text that a scorer read, in one line; empty if none did."""
    return str(_of_text(row).get("text") or "")


def _of_text(row: dict[str, Any]) -> dict[str, Any]:
    """The detail of the scorer that looked for text."""
    details = (score.get("detail") or {} for score in (row.get("scores") or {}).values())
    return next((detail for detail in details if isinstance(detail.get("frames"), list)), {})


def _nearest(seconds: Sequence[float], wanted: float) -> int:
    return int(np.argmin(np.abs(np.asarray(seconds) - wanted)))


def _boxes(tile: Image.Image, boxes: Sequence[Sequence[Sequence[float]]]) -> None:
    """boxes: each its corners (x, y), as shares of width and height."""
    pen = ImageDraw.Draw(tile)
    for corners in boxes:
        points = [(x * tile.width, y * tile.height) for x, y in corners]
        pen.line([*points, points[0]], fill=_BOX, width=2)


def _vectors(tile: Image.Image, flow: dict[str, Any]) -> None:
    """Arrows of the motion field, the longest as long as a cell; a still field shows dots."""
    rows, columns = int(flow["rows"]), int(flow["columns"])
    field = np.asarray(flow["vectors"], dtype=np.float64).reshape(rows, columns, 2)
    field = field * (tile.width, tile.height)
    cell = min(tile.width / columns, tile.height / rows)
    longest = float(np.linalg.norm(field, axis=2).max())
    scale = 0.8 * cell / longest if longest > 0.5 else 1.0
    pen = ImageDraw.Draw(tile)
    for i in range(rows):
        for j in range(columns):
            x, y = (j + 0.5) * tile.width / columns, (i + 0.5) * tile.height / rows
            dx, dy = field[i, j] * scale
            pen.line((x, y, x + dx, y + dy), fill=_ARROW, width=1)
            pen.ellipse((x + dx - 1.5, y + dy - 1.5, x + dx + 1.5, y + dy + 1.5), fill=_ARROW)
