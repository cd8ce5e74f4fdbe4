"""The figures of a run so far, by step: read from its log when it is resumed, then taken line by line."""

from __future__ import annotations

import json
import math
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_BIN = re.compile(r"(val_)?loss_t\d{1,3}")
#: begins the names of figures of drawn samples
JUDGED = "eval_"
#: besides those of the bins of timesteps and of drawn samples
_KEPT = ("loss", "val_loss", "lr", "grad_norm", "memory")


@dataclass(slots=True)
class Curve:
    """One figure: its steps, and its values at them."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, step: int, value: Any) -> None:
        """Takes finite numbers."""
        if isinstance(value, (int, float)) and math.isfinite(value):
            self.steps.append(step)
            self.values.append(value)

    def cut(self, step: int) -> None:
        """Drops `step` and later ones."""
        count = bisect_left(self.steps, step)
        del self.steps[count:], self.values[count:]

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values, (N,) each."""
        return np.array(self.steps, np.float64), np.array(self.values, np.float64)


class History:
    """The lines of log.jsonl as curves.

    curves: by name; "speed" is samples per second. skipped: steps whose update was skipped. rollbacks: the first steps
    after the run went back. abandoned: the losses of the steps that were given up for that.
    """

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.skipped: array[int] = array("q")
        self.rollbacks: list[int] = []
        self.abandoned: list[Curve] = []
        self.step = 0
        self.samples = 0
        self._rolled = 0

    def read(self, folder: Path) -> None:
        """Takes the log of a run's folder, and those of what it gave up."""
        for path in sorted(folder.glob("log-rollback-*.jsonl")):
            curve = Curve()
            for line in _lines(path):
                curve.add(line["step"], line.get("loss"))
            self.abandoned.append(curve)
        for line in _lines(folder / "log.jsonl"):
            self.take(line)

    def take(self, line: dict[str, Any]) -> None:
        """Takes a line of log.jsonl; one of an earlier step is of a run that went back."""
        step = int(line["step"])
        if step <= self.step:
            self._go_back(step)
        self.step = step
        self.samples += int(line.get("samples") or 0)
        more = (name for name in line if _BIN.fullmatch(name) or name.startswith(JUDGED))
        for name in (*_KEPT, *more):
            self._curve(name).add(step, line.get(name))
        seconds = line.get("seconds") or 0
        if seconds > 0:
            self._curve("speed").add(step, (line.get("samples") or 0) / seconds)
            self._curve("seconds").add(step, seconds)
        if line.get("skipped"):
            self.skipped.append(step)
        rolled = int(line.get("rollbacks") or 0)
        if rolled > self._rolled:
            self.rollbacks.append(step)
        self._rolled = rolled

    def _curve(self, name: str) -> Curve:
        return self.curves.setdefault(name, Curve())

    def _go_back(self, step: int) -> None:
        loss = self._curve("loss")
        first = bisect_left(loss.steps, step)
        self.abandoned.append(Curve(loss.steps[first:], loss.values[first:]))
        for curve in self.curves.values():
            curve.cut(step)
        del self.skipped[bisect_left(self.skipped, step) :]

    def last(self, name: str, count: int = 1) -> float | None:
        """The mean of the last `count` values; None if there is none."""
        values = self.curves[name].values[-count:] if name in self.curves else []
        return sum(values) / len(values) if values else None

    def before(self, step: int) -> float | None:
        """The loss at `step` or the last one before; None if there is none."""
        loss = self._curve("loss")
        at = bisect_right(loss.steps, step)
        return loss.values[at - 1] if at else None

    def bins(self, prefix: str) -> dict[str, Curve]:
        """Curves of the bins of timesteps, by their first timestep: `prefix` is "loss" or "val_loss"."""
        return {
            name.rpartition("_t")[2]: curve
            for name, curve in sorted(self.curves.items())
            if _BIN.fullmatch(name) and name.rpartition("_t")[0] == prefix
        }

    def judged(self) -> dict[str, Curve]:
        """Curves of drawn samples, by the metric's name."""
        return {
            name.removeprefix(JUDGED): curve
            for name, curve in sorted(self.curves.items())
            if name.startswith(JUDGED) and len(curve.steps)
        }


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                return  # a torn last line of a killed run
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line
