"""What a person sees while training: one live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Off a terminal, a line is printed at most this often, in seconds.
QUIET_SECONDS = 30.0


class TrainingProgress:
    """Shows step, loss (running mean), rate, samples a second and time left."""

    def __init__(self, steps: int, done: int, show: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not show)
        self.live = show and self.console.is_terminal
        self.loss: float | None = None
        self.speed: float | None = None
        self.last_print = 0.0
        self.steps = steps
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"), TextColumn("left"), TimeRemainingColumn(),
            console=self.console, disable=not self.live,
        )  # fmt: skip
        self.task = self.bar.add_task("training", total=steps, completed=done, line="")

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, line: dict[str, Any]) -> None:
        """Takes a line of log.jsonl in. A skipped step leaves the running loss as it was."""
        loss = line["loss"]
        if math.isfinite(loss):
            self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss
        shown = loss if self.loss is None else self.loss
        speed = line["samples"] / max(line["seconds"], 1e-9)
        self.speed = speed = speed if self.speed is None else 0.95 * self.speed + 0.05 * speed
        text = f"loss {shown:.4f}  lr {line['lr']:.2e}  {speed:.1f} samples/s"
        if self.live:
            self.bar.update(self.task, completed=line["step"], line=text)
        elif time.monotonic() - self.last_print > QUIET_SECONDS:
            self.last_print = time.monotonic()
            left = (self.steps - line["step"]) * line["samples"] / max(speed, 1e-9)
            self.console.print(
                f"step {line['step']}/{self.steps}  {text}  {left / 60:.1f} min left", highlight=False
            )
