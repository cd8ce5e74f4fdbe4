"""Progress of a generation: a bar for each phase."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import TaskID

_UNITS = {"imports": "import", "text": "text", "denoising": "step", "decoding": "frame"}


class SecondsPerStep(ProgressColumn):
    """Seconds a step since the phase began: "0.12 s/step"."""

    def render(self, task: Task) -> Text:
        if not task.completed or task.elapsed is None:
            return Text("")
        seconds = (task.finished_time or task.elapsed) / task.completed
        shown = f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms"
        return Text(f"{shown}/{task.fields['unit']}", style="progress.data.speed")


class GenerationProgress:
    """A bar for each phase: steps, seconds per step, time left. Pass `on_step` to the pipeline."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            SecondsPerStep(),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> GenerationProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_step(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` steps of a phase are done; its bar appears with the first call."""
        if phase not in self._tasks:
            unit = _UNITS.get(phase, "step")
            self._tasks[phase] = self._progress.add_task(phase, total=total, unit=unit)
        self._progress.update(self._tasks[phase], completed=done, total=total)
