"""Strokes that stay where they are from one frame to the next, whatever moves behind them: letters laid over a picture.

Their density tells which of a clip's frames the text detector looks at: a few spread evenly, then those that have
clearly more steady strokes than every frame looked at so far. It also tells whether a box is laid over the picture: its
strokes stay where those around it do not, or they come and go where those around them stay.

Shape legend: N frames, H height, W width, R rows and C columns of patches.
"""

from __future__ import annotations

import numpy as np

#: Longer side, in pixels, at which strokes are measured; the side of a patch.
SIDE, PATCH = 480, 12
#: Levels of 255 by which a patch's mean must exceed that of the frames looked at; number of such patches for a
#: look.
LEVELS, PATCHES = 5.0, 4
#: Fewest levels of a step that is a stroke.
STEP = 8
#: Shares of a box's strokes that another frame has too: at least the first if they stay, at most the second if they
#: do not.
STAY, GO = 0.6, 0.35
#: The first where nothing else stays, the second where all else does: a box is larger than its letters and has strokes
#: of the picture too.
STAY_ALONE, GO_WITH = 0.45, 0.6
#: At most this share of all other strokes stays where nothing else does.
_NOTHING = 0.1
#: Largest share of a frame's patches that may be letters laid over it.
_MOST = 0.3
#: What is behind letters moves if at most this share of the first frame's strokes is in the last one too, or at least
#: this share of the pixels changes by a stroke.
_STILL, _MOVED = 0.9, 0.25

#: A rectangle: left, top, right, bottom as shares of width and height.
Place = tuple[float, float, float, float]


class Strokes:
    """The strokes of a clip's frames, uint8 (N, H, W, 3) in order of time."""

    def __init__(self, pixels: np.ndarray) -> None:
        height, width = pixels.shape[1:3]
        scale = min(1.0, SIDE / max(height, width))
        self._size = (max(PATCH, round(width * scale)), max(PATCH, round(height * scale)))
        self._ends = [self._grey(pixels[n]) for n in (0, -1)]
        self._steps = [np.diff(self._grey(frame)) for frame in pixels]  # in levels, int16 (H, W - 1) each
        here = self._steps[:-1]
        kept = [self._patches(_shared(one, other)) for one, other in zip(here, self._steps[1:], strict=True)]
        none = np.zeros_like(kept[0]) if kept else np.zeros((1, 1), np.float32)
        self._steady = np.maximum([none, *kept], [*kept, none])

    def next_look(self, looked: list[int]) -> int | None:
        """The frame with the most steady strokes that no frame looked at has; None if no frame has enough of them."""
        more = self._steady - self._steady[looked].max(0) - LEVELS
        is_more = more > 0
        worth = np.where(is_more.sum((1, 2)) >= PATCHES, np.where(is_more, more, 0).sum((1, 2)), 0)
        best = int(worth.argmax())
        return best if worth[best] > 0 else None

    def is_laid_over(self, number: int, place: Place) -> bool:
        """True if the strokes of a frame in a rectangle are laid over the picture."""
        steps = self._steps[number]
        inside = np.zeros(steps.shape, bool)
        inside[self._window(place)] = True
        is_stroke = np.abs(steps) >= STEP
        within, around = is_stroke & inside, is_stroke & ~inside
        if not within.any() or around.sum() < within.sum() / 2:
            return False
        shares = [
            (self._share(number, n, within), self._share(number, n, around)) for n in self._others(number)
        ]
        beside = [shares[n - (n > number)] for n in (number - 1, number + 1) if 0 <= n < len(self._steps)]
        if any(within >= STAY_ALONE and around <= _NOTHING for within, around in beside):
            return True
        stays = [around for within, around in beside if within >= STAY]
        return bool(stays) and (
            min(stays) <= GO
            or any(within <= GO_WITH * around and around >= STAY for within, around in shares)
        )

    def held(self, pixels: np.ndarray) -> np.ndarray | None:
        """The mean of all frames, uint8 (H, W, 3): what is behind a faint watermark blurs, the watermark does not.

        None if no strokes are in all frames, many are, or nothing moves.
        """
        if not self._moves():
            return None
        is_held = self._patches(self._mean()) >= LEVELS
        if not PATCHES <= is_held.sum() <= _MOST * is_held.size:
            return None
        total = np.zeros(pixels.shape[1:], np.float32)
        for frame in pixels:
            total += frame
        return np.rint(total / len(pixels)).astype(np.uint8)

    def is_held(self, place: Place) -> bool:
        """True if the mean strokes in a rectangle are in each of the frames, most of them."""
        window = self._window(place)
        mean = np.stack([steps[window] for steps in self._steps]).mean(0, dtype=np.float32)
        each = sum(float(_shared(mean, steps[window]).sum()) for steps in self._steps) / len(self._steps)
        return each > 0 and each >= STAY_ALONE * float(np.abs(mean).sum())

    def _moves(self) -> bool:
        """True if the picture of the last frame is not that of the first."""
        first, last = self._steps[0], self._steps[-1]
        change = np.abs(self._ends[1] - self._ends[0])
        return bool(
            _shared(first, last).sum() <= _STILL * np.abs(first).sum() or (change >= STEP).mean() >= _MOVED
        )

    def _mean(self) -> np.ndarray:
        """Sizes of the mean steps of all frames: float32 (H, W - 1)."""
        return np.abs(np.mean(self._steps, axis=0, dtype=np.float32))

    def _window(self, place: Place) -> tuple[slice, slice]:
        height, width = self._steps[0].shape
        left, top, right, bottom = place
        return (
            slice(max(0, int(top * height)), int(bottom * height) + 1),
            slice(max(0, int(left * width)), int(right * width) + 1),
        )

    def isolate(self, number: int, frame: np.ndarray) -> np.ndarray | None:
        """A frame, uint8 (H, W, 3), blurred except where letters may be laid over it.

        None if that is nowhere, or nearly everywhere.

        A detector that sees letters in a texture, or none in front of it, sees them alone.
        """
        import cv2

        here, total = self._steps[number], self._patches(np.abs(self._steps[number]))
        shared = {n: self._patches(_shared(here, self._steps[n])) for n in self._others(number)}
        beside = max(
            (n for n in (number - 1, number + 1) if n in shared), key=lambda n: float(shared[n].sum())
        )
        is_steady = (total >= LEVELS) & (shared[beside] >= STAY * total)
        if shared[beside].sum() > GO * total.sum():
            # the picture stays, or letters are most of its strokes: those that come and go
            far = [n for n in shared if shared[n].sum() >= STAY * total.sum()]
            gone = [shared[n] <= GO * total for n in far]
            is_steady &= np.logical_or.reduce(gone) if gone else False
        if not PATCHES <= is_steady.sum() <= _MOST * is_steady.size:
            return None
        height, width = frame.shape[:2]
        mask = cv2.dilate(is_steady.astype(np.float32), np.ones((3, 5), np.uint8))
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
        side = max(3, min(height, width) // 6)
        blurred = cv2.blur(frame, (side, side)).astype(np.float32)
        return np.rint(blurred + mask * (frame - blurred)).astype(np.uint8)

    def _others(self, number: int) -> list[int]:
        return [n for n in range(len(self._steps)) if n != number]

    def _share(self, number: int, other: int, place: np.ndarray) -> float:
        """The share of a frame's strokes in a place, bool (H, W - 1), that another frame has too."""
        here = self._steps[number][place]
        return float(_shared(here, self._steps[other][place]).sum() / np.abs(here).sum())

    def _grey(self, frame: np.ndarray) -> np.ndarray:
        """A frame in levels at the size at which strokes are measured: int16 (H, W)."""
        import cv2

        small = cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.int16)

    def _patches(self, values: np.ndarray) -> np.ndarray:
        """Means over patches: float32 (R, C)."""
        import cv2

        width, height = (max(1, round(side / PATCH)) for side in self._size)
        return cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)


def _shared(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Shares of each step that are in both: the smaller one less their difference, at least 0."""
    return np.maximum(np.minimum(np.abs(here), np.abs(there)) - np.abs(here - there), 0)
