"""The shape of a metric, as `ea eval` calls it and plugin authors write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ea_runtime.evaluation.clip import Clip

#: A number; several by name; or None where the video is no case for the metric, such as one frame for motion.
Value = float | Mapping[str, float] | None


class Metric(Protocol):
    """A function of a clip. Of a pair of videos, the other one is `clip.reference`.

    Raises UserError, one line, for a clip that it cannot judge. It may have `missing()`, lines about the files and
    packages that it lacks, and `prepare(paths, prompts)`, called once with all videos before the first.
    """

    def __call__(self, clip: Clip, /) -> Value: ...


class SetMetric(Protocol):
    """A distance of two sets of videos, from features of each."""

    def features(self, clip: Clip) -> np.ndarray:
        """(D,) of one clip. Raises UserError, one line, for a clip that it cannot judge."""
        ...

    def distance(self, ours: np.ndarray, theirs: np.ndarray) -> float:
        """Of features (N, D) and (M, D)."""
        ...


def missing(metric: Any) -> list[str]:
    """One line for each file or package that a metric lacks; none for one without a method `missing`."""
    return list(metric.missing()) if hasattr(metric, "missing") else []


def evenly(num_frames: int, count: int) -> Sequence[int]:
    """Up to `count` numbers of frames, spread evenly: the middle of each of as many equal parts."""
    count = min(count, num_frames)
    return [int((i + 0.5) * num_frames / count) for i in range(count)]
