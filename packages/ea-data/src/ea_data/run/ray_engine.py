"""The same tasks on Ray Data: on this machine, or on the cluster that RAY_ADDRESS names.

Paths and spans travel, but no frames (except those for a captioner of this process), so every node must see the raw
files and the set under the same paths. Ledger and store stay with the process that started the run, so a lost node
costs only its current tasks, and any engine resumes where another one stopped.

Three of Ray's traps shape this file. A row that raises fails its whole block: all errors are caught inside. Actors
that take every CPU starve what feeds them: these are plain tasks, whose processes Ray keeps, and each keeps its child.
Ray's own checkpoint lost rows: ours is used.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import islice
from typing import Any

from ea_data.children.supervisor import Failure, Supervisor, WorkerStartError
from ea_data.run.engine import Limits, supervisor
from ea_data.run.worker import Task, TaskResult, Worker
from ea_runtime.errors import MissingPackageError, UserError

#: Tasks passed to Ray at a time, at least in total and for each process; the driver's memory holds no more of them.
#: At the end of each batch processes wait for the last tasks: with this many per process, not for long.
TASKS_AT_A_TIME, TASKS_A_PROCESS = 8192, 64
#: Tasks per block: its results come back together, so a killed run repeats at most this many for each process.
TASKS_A_BLOCK = 4


class RayEngine:
    """Tasks as rows of Ray datasets. limits.workers: processes; 0: one for each CPU of the cluster.

    Raises MissingPackageError if Ray is not installed.
    """

    def __init__(self, worker: Worker, limits: Limits) -> None:
        # under `uv run`, Ray would copy the working folder to each node and build an environment from the network
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        try:
            ray: Any = import_module("ray")
            import_module("ray.data")
        except ImportError as error:
            raise MissingPackageError(
                f"`--engine ray` needs Ray, which cannot be imported ({error}); run `pip install 'ea-data[ray]'`"
            ) from error
        self._ray = ray
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            try:
                # an address comes from RAY_ADDRESS; without it, this machine
                ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
            # it also raises bare Exceptions if its own processes do not start
            except Exception as error:
                raise UserError(
                    f"Ray cannot be started: {error}; check RAY_ADDRESS, and set RAY_AUTH_MODE=token if the "
                    "cluster asks for a token"
                ) from error
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # otherwise one line per pass
        self._worker, self._limits = worker, limits
        self._processes = limits.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, TaskResult | Failure]]:
        tasks = iter(tasks)
        size = max(TASKS_AT_A_TIME, TASKS_A_PROCESS * self._processes)
        while chunk := list(islice(tasks, size)):
            yield from self._run_chunk(chunk)

    def _run_chunk(self, tasks: list[Task]) -> Iterator[tuple[Task, TaskResult | Failure]]:
        rows = [{"task": pickle.dumps((number, task))} for number, task in enumerate(tasks)]
        blocks = max(1, len(rows) // TASKS_A_BLOCK)
        limits = Limits(1, self._limits.timeout, self._limits.memory_mb)
        whole: Any = self._ray.data.from_items(rows, override_num_blocks=blocks)
        done = whole.flat_map(
            do_row,
            fn_args=(pickle.dumps((self._worker, limits)),),
            compute=self._ray.data.TaskPoolStrategy(size=self._processes),
        )
        for row in done.iter_rows():
            number, result = pickle.loads(row["result"])
            if isinstance(result, WorkerStartError):
                raise UserError(f"a worker process cannot start: {result}")
            yield tasks[number], result

    def close(self) -> None:
        if self._is_ours:
            self._ray.shutdown()


#: settings -> the child of this process of Ray's, which lives as long as the process, from pass to pass
_pools: dict[bytes, Supervisor] = {}


def do_row(row: dict[str, Any], settings: bytes) -> list[dict[str, Any]]:
    """Turns a task's row into its result's, in a process of Ray's. A supervised child does the work, so a crash costs
    one task here too. settings: Worker and Limits, pickled."""
    if settings not in _pools:
        for pool in _pools.values():
            pool.close()
        _pools.clear()
        worker, limits = pickle.loads(settings)
        _pools[settings] = supervisor(worker, limits, 1)
    number, task = pickle.loads(row["task"])
    try:
        result = _pools[settings].call(task)
    except WorkerStartError as error:
        result = error
    return [{"result": pickle.dumps((number, result))}]
