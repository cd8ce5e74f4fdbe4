"""The metric `seam`: joins of the VAE's chunks and of windows, which should look like any other pair of frames."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ea_runtime.evaluation.clip import Clip, step

#: pairs of frames on either side of a join that it is compared with
_AROUND = 3


class SeamOptions(BaseModel):
    """chunk: frames that the VAE codes together; 0: only joins of windows count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chunk: int = Field(9, ge=0)


class Seam:
    """Change across a join beyond that around it, in levels of 255: the mean over the joins; 0 is none.

    Joins are at each chunk of 9 frames, as MagViT codes them, and where the sidecar says that windows meet; 0 there is
    the join from a loop's end to its start. None for a video without a join.
    """

    def __init__(self, options: SeamOptions) -> None:
        self.options = options

    def __call__(self, clip: Clip) -> float | None:
        count = len(clip.frames)
        joins = set(range(self.options.chunk, count, self.options.chunk)) if self.options.chunk else set()
        joins |= {one["frame"] for one in clip.record.get("joins", ()) if 0 <= one["frame"] < count}
        means, _ = clip.steps
        if not joins or count < 3:
            return None
        return float(np.mean([self._excess(clip, means, join, joins) for join in sorted(joins)]))

    def _excess(self, clip: Clip, means: np.ndarray, join: int, joins: set[int]) -> float:
        count = len(clip.frames)
        across = means[join - 1] if join else step(clip.frames[-1], clip.frames[0])[0]
        near = [join + i for i in range(-_AROUND, _AROUND + 1) if i]
        # step n leads to frame n; those of a loop's seam are at both ends of the video
        near = [n % count for n in near] if not join else [n for n in near if 0 < n < count]
        around = [means[n - 1] for n in near if n and n not in joins]
        return max(0.0, float(across - np.median(around))) if around else 0.0
