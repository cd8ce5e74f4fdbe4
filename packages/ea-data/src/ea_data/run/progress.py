"""Progress of a run: a bar for each pass, clips per second, time left, and how many clips each filter dropped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

#: Seconds between two lines, without a terminal for a bar.
LINE_INTERVAL = 10.0


@dataclass(slots=True)
class Pass:
    """One pass over files or clips. fresh: how many were not known already."""

    name: str
    unit: str
    total: int
    done: int = 0
    fresh: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)

    def tell(self) -> str:
        """Such as "12.3 clips/s, 150 kept, motion -20, text-area -5, 2 errors"."""
        seconds = self.seconds or time.monotonic() - self.began
        words = [f"{self.fresh / seconds:.3g} {self.unit}/s" if self.fresh and seconds else ""]
        counts = dict(self.counts)
        if "kept" in counts:
            words.append(f"{counts.pop('kept')} kept")
        failed = counts.pop("error", 0)
        words += [f"{name} -{count}" for name, count in counts.items()]
        words.append(f"{failed} error{'s' * (failed != 1)}" if failed else "")
        return ", ".join(word for word in words if word)


class RunProgress:
    """Shows passes one after another, on a terminal as bars, elsewhere as lines. console: None is silent."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self.phases: list[Pass] = []

    @contextmanager
    def phase(self, name: str, unit: str, total: int) -> Iterator[_Shown]:
        """A pass over `total` files or clips."""
        phase = Pass(name, unit, total)
        self.phases.append(phase)
        shown = _Shown(phase, self._console)
        try:
            yield shown
        finally:
            phase.seconds = time.monotonic() - phase.began
            shown.stop()


class _Shown:
    def __init__(self, phase: Pass, console: Console | None) -> None:
        self.phase, self._console = phase, console
        self._bar: Any = None
        self._task: Any = None
        self._last = time.monotonic()
        if console is None or not console.is_terminal or not phase.total:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rates]}"),
            console=console,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.phase.name, total=self.phase.total, rates="")

    def done(self, verdict: str = "", *, fresh: bool = False) -> None:
        """Counts one more. verdict: "kept", "error", the filter that dropped it, or empty."""
        phase = self.phase
        phase.done += 1
        phase.fresh += fresh
        if verdict:
            phase.counts[verdict] += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=phase.done, rates=phase.tell())
        elif self._console is not None and time.monotonic() - self._last > LINE_INTERVAL:
            self._last = time.monotonic()
            left = (phase.total - phase.done) * (self._last - phase.began) / phase.done
            line = f"{phase.name} {phase.done}/{phase.total}, {phase.tell()}, {left:.0f} s left"
            self._console.print(line, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
