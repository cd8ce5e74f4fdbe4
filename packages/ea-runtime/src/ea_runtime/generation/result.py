"""Results of a run, and how it is watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

#: called as on_step(phase, done, total): phase "text" counts texts, "denoising" network passes, "decoding"
#: frames
OnStep = Callable[[str, int, int], None]
#: called as on_preview(step, latents): network passes done, and the clean latents (C, t, h, w), float32, to which the
#: last one leads; of several videos denoised together, those of the first, and of a long one those of its window
OnPreview = Callable[[int, Tensor], None]


@dataclass
class VideoOutput:
    """The result of a run.

    frames: (B, T, H, W, 3) uint8, or None with output="latents". latents: (B, C, t, h, w) float32 on the CPU,
    the denoiser's scale; of windows joined as pixels, those of all windows, one after the other. settings:
    `pipe(**settings)` repeats the run. timings: seconds by phase. notes: lines for the user, such as text that was cut
    off. decode_seeds: for `VideoPipeline.iter_frames`, one for each video; decoding.frames_of decodes any result.
    """

    frames: np.ndarray | None
    latents: Tensor
    settings: dict[str, Any]
    timings: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    decode_seeds: list[int] = field(default_factory=list)
