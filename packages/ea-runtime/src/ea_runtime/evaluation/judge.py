"""Videos to rows of values: each is decoded once for all metrics, in several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ea_runtime.errors import UserError
from ea_runtime.evaluation.chosen import Chosen
from ea_runtime.evaluation.clip import Clip, read_clip
from ea_runtime.evaluation.strip import strip
from ea_runtime.evaluation.videos import Video
from ea_runtime.plugins.discovery import one_line
from ea_runtime.plugins.host import get_host, make_host, set_host

#: videos for each process below which starting it takes longer than it saves
_WORTH = 12


@dataclass
class Row:
    """Findings on one video. values: by metric, or metric.part. notes: lines about metrics that could not be
    measured. reason: the line that says why it could not be read, or why a metric failed; "" if all is well.
    """

    name: str
    key: str
    prompt: str | None = None
    size: tuple[int, int, int] = (0, 0, 0)
    values: dict[str, float] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    strip: bytes = b""


@dataclass(frozen=True)
class Task:
    """A video and, if it is compared, that of the other folder; either may be None."""

    video: Video | None
    other: Video | None


class Judge:
    """The metrics of a run, built once in each process."""

    def __init__(self, chosen: Sequence[Chosen]) -> None:
        self._metrics = [(one.name, one.record.of, one.build()) for one in chosen]

    def prepare(self, videos: Sequence[Video]) -> None:
        """Lets metrics see all videos before the first."""
        for _, _, metric in self._metrics:
            if hasattr(metric, "prepare"):
                metric.prepare([video.path for video in videos], [video.prompt for video in videos])

    def __call__(self, task: Task) -> tuple[Row | None, Row | None]:
        """The rows of both videos. Values of pairs are in the first."""
        other, other_clip = self._alone(task.other)
        row, clip = self._alone(task.video)
        if row is not None and clip is not None and task.other is not None:
            if other_clip is not None:
                self.measure(row, replace(clip, reference=other_clip), ("pair",))
            else:
                assert other is not None
                names = [name for name, of, _ in self._metrics if of == "pair"]
                row.notes |= dict.fromkeys(names, f"the other video cannot be read: {other.reason}")
        return row, other

    def _alone(self, video: Video | None) -> tuple[Row | None, Clip | None]:
        if video is None:
            return None, None
        row = Row(video.name, video.key, video.prompt)
        try:
            clip = read_clip(video.path, video.name, video.record)
        except UserError as error:
            # the folder is known: only the name stays
            row.reason = str(error).replace(str(video.path), video.name)
            return row, None
        self.measure(row, clip, ("video", "set"))
        row.strip = strip(clip.frames)
        return row, clip

    def measure(self, row: Row, clip: Clip, kinds: tuple[str, ...] = ("video",)) -> None:
        """Puts the size of a clip and the values of some kinds of metrics into its row."""
        count, height, width = clip.frames.shape[:3]
        row.size = (count, height, width)
        for name, of, metric in self._metrics:
            if of not in kinds:
                continue
            try:
                if of == "set":
                    row.features[name] = np.asarray(metric.features(clip), np.float64)
                else:
                    row.values |= _flat(name, metric(clip))
            except UserError as error:
                row.notes[name] = str(error)
            # a metric of a plugin may fail as it likes: the other videos are judged
            except Exception as error:
                row.reason = f"the metric {name!r} failed: {one_line(error)}"


def judge(
    tasks: Sequence[Task],
    chosen: Sequence[Chosen],
    jobs: int | None = None,
    on_done: Callable[[], Any] = lambda: None,
) -> list[tuple[Row | None, Row | None]]:
    """The rows of all tasks, in their order; the same for any number of processes.

    jobs: processes; None: one per core, fewer for few videos. on_done: called after each task. Metrics with networks
    run in this process. A video whose decoder crashes its process is a row with that reason.
    """
    cores = min(os.cpu_count() or 1, 8) if jobs is None else jobs
    if jobs is None:
        cores = max(1, min(cores, len(tasks) // _WORTH))
    if cores == 1 or any(one.record.needs_weights for one in chosen):
        worker = Judge(chosen)
        worker.prepare([video for task in tasks for video in (task.video, task.other) if video is not None])
        found = []
        for task in tasks:
            found.append(worker(task))
            on_done()
        return found
    results: dict[int, tuple[Row | None, Row | None]] = {}
    for number, rows in _spread(tasks, chosen, cores):
        results[number] = rows
        on_done()
    return [results[number] for number in range(len(tasks))]


def _spread(
    tasks: Sequence[Task], chosen: Sequence[Chosen], jobs: int
) -> Iterator[tuple[int, tuple[Row | None, Row | None]]]:
    """Rows of tasks by number. After a crash the videos that are left go one by one, to find the one that crashes."""
    left = dict(enumerate(tasks))
    with _pool(chosen, jobs) as pool:
        futures: dict[int, Future[Any]] = {number: pool.submit(_work, task) for number, task in left.items()}
        try:
            for number, future in futures.items():
                rows = future.result()
                del left[number]
                yield number, rows
        except BrokenProcessPool:
            pass
    while left:
        with _pool(chosen, 1) as pool:
            for number, task in list(left.items()):
                del left[number]
                try:
                    yield number, pool.submit(_work, task).result()
                except BrokenProcessPool:
                    yield number, (_crashed(task.video), _crashed(task.other))
                    break


def _crashed(video: Video | None) -> Row | None:
    if video is None:
        return None
    return Row(video.name, video.key, video.prompt, reason="the process that read it crashed")


def _pool(chosen: Sequence[Chosen], jobs: int) -> ProcessPoolExecutor:
    arguments = ([str(file) for file in get_host().files], list(chosen))
    # fork would take over threads of libraries in the middle of what they do
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, _start, arguments)


_judge: Judge | None = None


def _start(files: list[str], chosen: Sequence[Chosen]) -> None:
    global _judge
    set_host(make_host([Path(file) for file in files]))
    _judge = Judge(chosen)


def _work(task: Task) -> tuple[Row | None, Row | None]:
    assert _judge is not None
    return _judge(task)


def _flat(name: str, value: Any) -> dict[str, float]:
    """The values of a metric by name. Raises UserError for one that is no number."""
    if value is None:
        return {}
    found = (
        {f"{name}.{part}": one for part, one in value.items()}
        if isinstance(value, Mapping)
        else {name: value}
    )
    numbers = {key: float(one) for key, one in found.items()}
    for key, one in numbers.items():
        if not np.isfinite(one):
            raise UserError(f"{key} came out as {one}")
    return numbers
