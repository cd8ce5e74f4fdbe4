"""Videos that a training run draws, judged by what `ea eval` measures without options."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ea_runtime.evaluation.chosen import choose
from ea_runtime.evaluation.clip import Clip
from ea_runtime.evaluation.judge import Judge, Row
from ea_runtime.training.recipe import Samples


class SampleMetrics:
    """The mean of each metric over drawn samples, by its name; a metric that no sample is a case for has none.

    say: gets one line for each metric that cannot measure them, once. Raises UserError for a metric whose files or
    packages are missing.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._judge = Judge(choose(is_compared=False))
        self._say = say
        self._said: set[str] = set()

    def __call__(self, samples: Samples) -> dict[str, float]:
        rows = [
            self._row(str(number), video, prompt)
            for number, (video, prompt) in enumerate(zip(samples.videos, samples.prompts, strict=True))
        ]
        names = dict.fromkeys(name for row in rows for name in row.values)
        return {
            name: float(np.mean([row.values[name] for row in rows if name in row.values])) for name in names
        }

    def _row(self, name: str, video: np.ndarray, prompt: str) -> Row:
        row = Row(name, name, prompt)
        self._judge.measure(row, Clip(name, video, record={"settings": {"prompt": prompt}}))
        for line in filter(None, (*row.notes.values(), row.reason)):
            if line not in self._said:
                self._said.add(line)
                self._say(f"samples are not judged by all metrics: {line}")
        return row
