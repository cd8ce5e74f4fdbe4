"""A contact sheet: originals above their reconstructions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ea_runtime.video.sheets import frame_grid, spaced


def contact_sheet(pairs: Sequence[tuple[Tensor, Tensor]], frames_each: int = 3) -> np.ndarray:
    """One column for each pair: its original above its reconstruction, up to `frames_each` frames side by side.

    pairs: (original, reconstruction), each (3, T, H, W) in -1..1, sizes may differ between pairs. Frames are
    spread evenly over each clip. Returns uint8 (H', W', 3), black where a pair is smaller than the largest.
    """
    columns = []
    for original, reconstruction in pairs:
        chosen = spaced(original.shape[1], frames_each)
        rows = [rearrange(x[:, chosen], "c t h w -> h (t w) c") for x in (original, reconstruction)]
        pixels = torch.cat(rows).float().clamp(-1, 1).add(1).mul(127.5).round()
        columns.append(pixels.to("cpu", torch.uint8).numpy())
    return frame_grid(columns, len(columns), paper=0)
