"""Fetches batches ahead of the loop, in worker processes or in this one: the same batches either way.

torch's DataLoader is as fast, but its order is fixed when it starts: a rollback would fork new workers, which have lost
the clips that they kept decoded, and an error in a worker arrives as a traceback.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from multiprocessing import connection
from typing import Any, NamedTuple

import torch
import torch.multiprocessing  # tensors then travel between processes through shared memory

from ea_runtime.errors import UserError
from ea_runtime.training.recipe import Batch

#: Seconds that a worker has to end, which it does after its current fetch.
_GRACE = 2.0
#: Jobs that each worker has ahead of it.
_AHEAD = 2


class FetchJob(NamedTuple):
    """The arguments of a recipe's `fetch`."""

    indices: list[int]
    seed: int
    step: int


class Fetcher:
    """Fetches the parts of each step's batch, in order.

    fetch: a recipe's. jobs_of: a step -> its jobs; called ahead of time, so a function of the step alone until
    `restart` is called. workers: 0 fetches when asked; more start that many processes, forked from this one: they
    have what the recipe had read so far, and keep what they read. steps: of the run; none past it is fetched.
    """

    def __init__(
        self,
        fetch: Callable[[list[int], int, int], Batch],
        jobs_of: Callable[[int], list[FetchJob]],
        workers: int,
        steps: int,
    ) -> None:
        self.jobs_of = jobs_of
        self.steps = steps
        self._fetch = fetch
        self._ahead: deque[tuple[int, list[_Worker]]] = deque()
        self._next_step = -1
        self._workers: list[_Worker] = []
        self._given = 0
        if workers and not hasattr(os, "fork"):
            raise UserError(
                f"`train.workers` needs a system that forks processes, got {workers}; set it to 0"
            )
        for _ in range(workers):
            self._workers.append(_Worker(fetch, [worker.pipe for worker in self._workers]))

    def batches(self, step: int) -> list[Batch]:
        """The parts of a step. Raises UserError if `fetch` does, or a worker died."""
        if not self._workers:
            return [self._fetch(*job) for job in self.jobs_of(step)]
        if not self._ahead or self._ahead[0][0] != step:
            self.restart()
            self._next_step = step
        self._give()
        _, givers = self._ahead.popleft()
        parts = [worker.take() for worker in givers]
        self._give()
        return parts

    def restart(self) -> None:
        """Drops what was fetched ahead: the run continues elsewhere, or with other draws."""
        while self._ahead:
            for worker in self._ahead.popleft()[1]:
                worker.take()

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            worker.pipe.close()  # a worker that waits for a job sees that there will be none
        deadline = time.monotonic() + _GRACE
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []
        self._ahead.clear()

    def _give(self) -> None:
        """Hands out the jobs of the coming steps, in turn, up to two ahead for each worker."""
        waiting = sum(len(givers) for _, givers in self._ahead)
        while self._next_step < self.steps and (not self._ahead or waiting < _AHEAD * len(self._workers)):
            givers = []
            for job in self.jobs_of(self._next_step):
                worker = self._workers[self._given % len(self._workers)]
                self._given += 1
                worker.give(job)
                givers.append(worker)
            waiting += len(givers)
            self._ahead.append((self._next_step, givers))
            self._next_step += 1


class _Worker:
    """One process that answers jobs in the order in which it gets them."""

    def __init__(self, fetch: Callable[..., Batch], others: list[connection.Connection]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(fetch, theirs, [*others, self.pipe], os.getpid()), name="ea-fetch"
        )
        self.process.start()
        theirs.close()

    def give(self, job: FetchJob) -> None:
        """Adds a job. Raises UserError if the process has ended."""
        try:
            self.pipe.send(job)
        except OSError:
            raise self._ended() from None

    def take(self) -> Batch:
        """The next answer. Raises UserError with its message, or naming what ended the process."""
        connection.wait([self.pipe, self.process.sentinel])
        try:
            if not self.pipe.poll():
                raise EOFError
            kind, answer = self.pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if kind == "user":
            raise UserError(answer)
        if kind == "fault":
            raise RuntimeError(f"fetching a batch failed in a worker:\n{answer}")
        return answer

    def _ended(self) -> UserError:
        self.process.join(_GRACE)
        code = self.process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return UserError(
            f"a worker that reads the data ended ({how}); if memory was short, lower `train.workers`, or set it to 0 "
            "to see what fails"
        )


def _work(
    fetch: Callable[..., Batch], pipe: connection.Connection, others: list[connection.Connection], parent: int
) -> None:
    """A worker's life: until its parent closes the pipe or is gone."""
    for other in others:
        other.close()  # only the parent may hold them, or a closed end would go unnoticed
    for number in (signal.SIGINT, signal.SIGTERM):
        # meant for the run, which ends its workers; not SIG_IGN, which a decoder's process would inherit
        signal.signal(number, lambda *_: None)
    torch.set_num_threads(1)  # a forked process must not enter a pool of threads that it does not have
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        answer: tuple[str, Any]
        try:
            answer = ("ok", fetch(*job))
        except UserError as error:
            answer = ("user", str(error))
        except Exception:  # any error: the run's process reports it
            answer = ("fault", traceback.format_exc())
        try:
            pipe.send(answer)
        except OSError:
            os._exit(0)


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, even if it was killed in the middle of a job."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
