"""Which of a clip's frames the text detector looks at: a few spread evenly, then those that may show other letters.

Letters that are laid over a picture are strokes that stay where they are, from one frame to the next, whatever moves
behind them. So the measure is the density of steady strokes, in small cells; a frame is worth a look where it has
clearly more of them than every frame looked at so far.

Shape legend: N frames, H height, W width, R rows and C columns of cells.
"""

from __future__ import annotations

import numpy as np

#: Longer side, in pixels, at which strokes are measured; the side of a cell.
SIDE, CELL = 480, 12
#: Levels of 255 by which a cell's mean must exceed that of the frames looked at, and number of such cells, for a look.
LEVELS, CELLS = 5.0, 4


def steady_strokes(pixels: np.ndarray) -> np.ndarray:
    """Mean steep change from left to right in each cell that the frame before or after has too: float32 (N, R, C).

    pixels: uint8 (N, H, W, 3), in order of time.
    """
    height, width = pixels.shape[1:3]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(CELL, round(width * scale)), max(CELL, round(height * scale)))
    steps = np.stack([_steps(frame, size) for frame in pixels])
    here, there = steps[:-1], steps[1:]
    same = np.minimum(np.abs(here), np.abs(there)) - np.abs(here - there)
    kept = np.stack([_cells(np.maximum(one, 0).astype(np.float32)) for one in same])
    none = np.zeros_like(kept[:1])
    return np.maximum(np.concatenate([none, kept]), np.concatenate([kept, none]))


def next_look(strokes: np.ndarray, looked: list[int]) -> int | None:
    """The frame with the most strokes that no frame looked at has; None if no frame has enough of them.

    strokes: of steady_strokes; looked: numbers of frames.
    """
    more = strokes - strokes[looked].max(0) - LEVELS
    is_more = more > 0
    worth = np.where(is_more.sum((1, 2)) >= CELLS, np.where(is_more, more, 0).sum((1, 2)), 0)
    best = int(worth.argmax())
    return best if worth[best] > 0 else None


def _steps(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Differences of neighbours in a row, in levels: int16 (H, W - 1)."""
    import cv2

    gray = cv2.cvtColor(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return np.diff(gray.astype(np.int16), axis=1)


def _cells(values: np.ndarray) -> np.ndarray:
    """Means over cells: (R, C)."""
    import cv2

    height, width = values.shape
    size = (max(1, round(width / CELL)), max(1, round(height / CELL)))
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA)
