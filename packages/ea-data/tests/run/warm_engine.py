"""An engine whose one supervised process outlives the runs of many tests, where that process is not what is tested."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ea_data.children.supervisor import Failure, Supervisor
from ea_data.run.worker import Task, TaskResult, Worker

#: start of the variables that the components of tests read
_PREFIX = "EA_TEST_"


@dataclass(frozen=True)
class _Order:
    worker: Worker
    number: int
    variables: Mapping[str, str]
    task: Task


class WarmChild:
    """In the child: prepares a worker once for each run, whose variables it takes over."""

    def __init__(self) -> None:
        self._number, self._worker = -1, None

    def __call__(self, order: _Order) -> TaskResult:
        for name in [name for name in os.environ if name.startswith(_PREFIX)]:
            del os.environ[name]
        os.environ.update(order.variables)
        if self._worker is None or order.number != self._number:
            order.worker.prepare()
            self._number, self._worker = order.number, order.worker
        return self._worker(order.task)


class WarmEngine:
    """A TaskEngine of one run over a pool of WarmChild."""

    _runs = 0

    def __init__(self, pool: Supervisor, worker: Worker) -> None:
        WarmEngine._runs += 1
        self._pool, self._worker, self._number = pool, worker, WarmEngine._runs

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, TaskResult | Failure]]:
        variables = {name: value for name, value in os.environ.items() if name.startswith(_PREFIX)}
        orders = (_Order(self._worker, self._number, variables, task) for task in tasks)
        for order, value in self._pool.as_completed(orders):
            yield order.task, value

    def close(self) -> None:
        """Nothing: the pool stays for the next run."""


def make_pool() -> Any:
    """The pool that engines of one session share; this folder must be in sys.path where it is used."""
    return Supervisor(
        "warm_engine:WarmChild", env={"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    )
