"""Progress of training: one live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ea_runtime.machine.terminal import make_console

#: Off a terminal, a line is printed at most this often, in seconds.
QUIET_SECONDS = 30.0


class TrainingProgress:
    """Shows step, loss (running mean), rate, samples per second, memory, time left, and faults so far.

    steps: of the whole run. done: of them, when it is opened. show: False shows nothing.
    """

    def __init__(self, steps: int, done: int, show: bool = True) -> None:
        self.console = make_console(stderr=True, quiet=not show)
        self.live = show and self.console.is_terminal
        self.loss: float | None = None
        self.speed: float | None = None
        self.step_seconds: float | None = None
        self.skipped = 0
        self.last_print = 0.0
        self.steps = steps
        text, line = TextColumn("{task.description}"), TextColumn("{task.fields[line]}")
        columns = text, BarColumn(bar_width=20), MofNCompleteColumn(), line
        self.bar = Progress(*columns, console=self.console, disable=not self.live)
        self.task = self.bar.add_task("training", total=steps, completed=done, line="")

    def __enter__(self) -> TrainingProgress:
        if self.live:  # rich before 14 prints an empty line when a disabled bar stops
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.stop()

    def take(self, line: dict[str, Any]) -> None:
        """Counts a line of log.jsonl, one per step. A skipped step does not change the running loss."""
        loss, seconds = line["loss"], max(line["seconds"], 1e-9)
        if loss is not None and math.isfinite(loss):
            self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss
        self.speed = _running(self.speed, line["samples"] / seconds)
        self.step_seconds = _running(self.step_seconds, seconds)
        self.skipped += bool(line.get("skipped"))

    def show(self, line: dict[str, Any]) -> None:
        """Shows the running figures with a line of log.jsonl that was taken.

        Read: step, loss (None or NaN if not finite), lr, samples, seconds; and if present skipped, rollbacks, bad
        (counts so far), memory (MB), wait (seconds of the step that waited for data).
        """
        text = self._text(line)
        if self.live:
            self.bar.update(self.task, completed=line["step"], line=text)
        elif time.monotonic() - self.last_print > QUIET_SECONDS:
            self.last_print = time.monotonic()
            self.console.print(f"step {line['step']}/{self.steps}  {text}", highlight=False, soft_wrap=True)

    def _text(self, line: dict[str, Any]) -> str:
        seconds = max(line["seconds"], 1e-9)
        parts = [
            f"loss {self.loss:.4f}" if self.loss is not None else "loss -",
            f"lr {line['lr']:.2e}",
            f"{self.speed or 0:.1f} samples/s",
        ]
        if line.get("memory"):
            parts.append(f"{line['memory'] / 1000:.2f} GB")
        parts.append(f"{duration((self.steps - line['step']) * (self.step_seconds or 0.0))} left")
        if line.get("wait", 0.0) > 0.2 * seconds:
            parts.append(f"{line['wait'] / seconds:.0%} waiting for data")
        counts = (
            ("skipped", self.skipped),
            ("rolled back", line.get("rollbacks", 0)),
            ("bad files", line.get("bad", 0)),
        )
        parts += [f"{count} {name}" for name, count in counts if count]
        return "  ".join(parts)


def _running(mean: float | None, value: float) -> float:
    return value if mean is None else 0.95 * mean + 0.05 * value


def duration(seconds: float) -> str:
    """48 s, 12.5 min, 3.4 h, 2.1 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
