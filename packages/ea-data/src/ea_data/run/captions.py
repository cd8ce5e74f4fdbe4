"""Captioners that wait for a server: many requests at a time from one process, frames from the children.

Such a captioner has an attribute `concurrency`. It is one object, called from that many threads, so its budget counts
once; it has no native code that could crash the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace

from ea_data.children.supervisor import Failure
from ea_data.profile import Part
from ea_data.protocols import Frames
from ea_data.run.engine import TaskEngine
from ea_data.run.worker import Task, TaskResult, attempt, guarded, no_frames


class CaptionEngine:
    """An engine for "caption" tasks: another engine decodes the frames, threads here call the captioner."""

    def __init__(self, engine: TaskEngine, part: Part, version: str) -> None:
        self._engine, self._component, self._version = engine, part.component, version
        self._threads = max(1, int(part.component.concurrency))

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, TaskResult | Failure]]:
        """Holds at most twice as many clips as there may be requests at once."""
        asked: dict[Future[TaskResult], Task] = {}
        pool = ThreadPoolExecutor(self._threads, "ea-caption")
        try:
            for task, result in self._look(tasks):
                if isinstance(result, Failure) or result.transient or result.entries:
                    yield task, result
                    continue
                asked[pool.submit(self._ask, task, result.frames or no_frames())] = task
                yield from self._answered(asked, 0.0 if len(asked) < 2 * self._threads else None)
            while asked:
                yield from self._answered(asked, None)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Does nothing: the owner of the other engine closes it."""

    def _look(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, TaskResult | Failure]]:
        if self._component.needs.mode == "none":
            yield from ((task, TaskResult([])) for task in tasks)
            return
        for task, result in self._engine.run(replace(task, stage="look") for task in tasks):
            yield replace(task, stage="caption"), result

    def _ask(self, task: Task, frames: Frames) -> TaskResult:
        key = (task.record["clip_id"], "caption", self._version)
        return attempt(lambda: [(*key, guarded(lambda: asdict(self._component(frames, task.record))))])

    def _answered(
        self, asked: dict[Future[TaskResult], Task], seconds: float | None
    ) -> Iterator[tuple[Task, TaskResult]]:
        done, _ = wait(asked, seconds, FIRST_COMPLETED)
        for future in done:
            yield asked.pop(future), future.result()
