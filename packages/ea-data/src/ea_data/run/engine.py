"""Runs tasks in processes of this machine; `ray_engine.py` runs them in Ray's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ea_data.children.supervisor import Failure, Supervisor, WorkerStartError
from ea_data.run.worker import Task, TaskResult, Worker
from ea_runtime.errors import UserError


@dataclass(frozen=True, slots=True)
class Limits:
    """workers: processes. timeout: seconds for each task. memory_mb: resident memory of each process; 0: no limit."""

    workers: int = 1
    timeout: float = 120.0
    memory_mb: int = 4096

    def seconds(self, task: Task) -> float:
        return self.timeout + task.extra_seconds


class TaskEngine(Protocol):
    """Does tasks in any order, with one result or Failure for each."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, TaskResult | Failure]]: ...

    def close(self) -> None: ...


class LocalEngine:
    """Supervised processes of this machine."""

    def __init__(self, worker: Worker, limits: Limits) -> None:
        self._pool = supervisor(worker, limits, limits.workers)

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, TaskResult | Failure]]:
        try:
            yield from self._pool.as_completed(tasks)
        except WorkerStartError as error:
            raise UserError(f"a worker process cannot start: {error}") from error

    def close(self) -> None:
        self._pool.close()


def supervisor(worker: Worker, limits: Limits, workers: int) -> Supervisor:
    """Children that share the cores: libraries with one thread per core in each would only wait for each other."""
    threads = str(max(1, (os.cpu_count() or 1) // limits.workers))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    env = {name: os.environ.get(name, threads) for name in names}
    return Supervisor(worker, workers, limits.seconds, limits.memory_mb, env=env)
