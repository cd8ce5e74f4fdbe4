"""Random frame crop: most batches keep the longest clip, some see a shorter one, so that it learns every length."""

from __future__ import annotations

import random

#: Part of the batches that keep the longest clip; the others share the rest evenly. EasyAnimate V2's figure.
LONGEST_PART = 0.9


def crop_lengths(longest: int, step: int) -> list[int]:
    """The numbers of frames that a clip of `longest` may be cut to: 1, then multiples of `step`, then `longest`.

    step: frames that the VAE encodes together (9 for MagViT, 8 for the slice VAE).
    """
    assert longest > 0
    assert step > 0
    return sorted({1, *range(step, longest, step), longest})


def draw_length(longest: int, step: int, seed: int) -> int:
    """One of `crop_lengths`, for a whole batch: a function of its arguments."""
    *shorter, last = crop_lengths(longest, step)
    draw = random.Random(seed)
    return last if not shorter or draw.random() < LONGEST_PART else draw.choice(shorter)
