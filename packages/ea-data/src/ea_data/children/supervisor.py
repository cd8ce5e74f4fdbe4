"""Supervised child processes: whatever a task does to its process costs that task and no other.

    with Supervisor("package.module:function", workers=2, timeout=30, memory_mb=2048) as pool:
        for result in pool.map(tasks):          # in the order of the tasks, as many results as tasks
            if isinstance(result, Failure): ...

A child holds one task at a time. One that takes longer than `timeout`, or more resident memory than `memory_mb`,
is killed; one that dies of a signal or exits is replaced. A task that ended its process is tried once more in a
new one and then given up (two strikes): its result is a Failure, and the other tasks continue. Children die with
the parent, even by SIGKILL, and nothing is forked: a child is a new Python that imports the target.

In concurrent.futures one dead process fails every task in flight. pebble has no memory limit, its children outlive
a parent that is killed, and it takes 1.5 times as long for a small task, twice as long for a frame buffer.
"""

from __future__ import annotations

import logging
import os
import pickle
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any, Literal

from ea_data.children.child import (
    ERROR,
    NOTE,
    READY,
    VALUE,
    TransientError,
    Unpacker,
    is_transient,
    note,
    pack,
)
from ea_runtime.errors import UserError

__all__ = ["Failure", "Supervisor", "TransientError", "WorkerStartError", "is_transient", "note"]

logger = logging.getLogger("ea")

#: Seconds between two checks of a busy child's memory.
_MEMORY_INTERVAL = 0.05
_PIPE_BYTES = 1 << 20
_STDERR_TAIL = 4000
#: Processes that a task may end before it is given up.
_STRIKES = 2
#: Seconds in which a child must be ready.
_START_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Reason why a task has no value.

    kind: "error" (the target raised), "crash" (its process died), "timeout" or "memory" (it was killed).
    reason: one line, the same for the same fault. error: the exception's class, for kind "error".
    during: the target's last `note`. is_transient: not the task's fault, worth another try later. trace: for the
    log, not compared.
    """

    kind: Literal["error", "crash", "timeout", "memory"]
    reason: str
    error: str = ""
    during: str = ""
    is_transient: bool = False
    trace: str = field(default="", compare=False, repr=False)


class WorkerStartError(RuntimeError):
    """The target cannot be made or prepared in a child. The message is the child's error."""


@dataclass(slots=True)
class _Queued:
    """A task in its turn. strikes: processes that it has ended."""

    number: int
    task: Any
    strikes: int = 0


class _Child:
    """One process, its pipes, and its current task."""

    def __init__(self, process: subprocess.Popen[bytes], tasks: int, results: int, errors: int) -> None:
        self.process, self.tasks, self.results, self.errors = process, tasks, results, errors
        self.unpacker = Unpacker()
        self.outgoing: deque[memoryview] = deque()
        self.job: _Queued | None = None
        self.is_ready = False
        self.limit = self.deadline = float("inf")
        self.next_look = float("inf")
        self.tail = b""
        self.note = ""

    def write(self) -> bool:
        """Writes as much as the pipe takes. True once all is written. Raises OSError if the child is gone."""
        while self.outgoing:
            piece = self.outgoing[0]
            try:
                count = os.write(self.tasks, piece)
            except BlockingIOError:
                return False
            if count == piece.nbytes:
                self.outgoing.popleft()
            else:
                self.outgoing[0] = piece[count:]
        return True

    def read_errors(self) -> bool:
        """Reads its stderr, whose tail is kept for the log. False at the end."""
        try:
            text = os.read(self.errors, 1 << 16)
        except BlockingIOError:
            return True
        self.tail = (self.tail + text)[-_STDERR_TAIL:]
        return bool(text)

    def resident_mb(self) -> float:
        """Resident memory; 0 if the system does not report it."""
        import psutil

        try:
            return psutil.Process(self.process.pid).memory_info().rss / (1 << 20)
        except psutil.Error:
            return 0.0

    def end(self) -> str:
        """Kills it if it is alive. Returns the way it ended, in words that do not depend on timing."""
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        with suppress(OSError):
            self.read_errors()
        for fd in (self.tasks, self.results, self.errors):
            os.close(fd)
        if code >= 0:
            return f"its process left with exit code {code}"
        with suppress(ValueError):
            return f"its process died of {signal.Signals(-code).name}"
        return f"its process died of signal {-code}"


class Supervisor:
    """Runs `target(task)` in child processes.

    target: "module:function" ("module:Class" makes an object first), or a callable that pickles; each child unpickles
    it once. Its method `prepare()`, if it has one, runs before the first task, within two minutes of the start.
    workers: most processes at a time; they start when there is work. timeout: seconds for each task, or a function of
    the task. memory_mb: most resident memory of a child, including everything it imports; 0: no limit. env:
    environment variables to set in the children.

    `map`, `as_completed` and `call` of one Supervisor take turns between threads. Close it, or use it as a context
    manager; unread results of an abandoned iterator are discarded with their processes.

    Raises UserError on Windows, where a child cannot inherit pipes.
    """

    def __init__(
        self,
        target: str | Callable[[Any], Any],
        workers: int = 1,
        timeout: float | Callable[[Any], float] = 60.0,
        memory_mb: int = 0,
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if sys.platform == "win32":
            raise UserError("supervised processes need Linux or macOS; on Windows run this under WSL")
        if workers < 1 or (not callable(timeout) and timeout <= 0) or memory_mb < 0:
            raise ValueError(
                "`workers` must be 1 or more, `timeout` above 0 and `memory_mb` 0 or more, "
                f"got {workers}, {timeout} and {memory_mb}"
            )
        self.workers, self.timeout, self.memory_mb = workers, timeout, memory_mb
        self._env = dict(env or {})
        self._blob = pickle.dumps(target, protocol=5)
        self._children: list[_Child] = []
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._starts_lost = 0
        self._again: deque[_Queued] = deque()  # tasks to be tried once more
        self._done: deque[tuple[_Queued, Any]] = deque()
        self._too_much = f"it took more than {memory_mb} MB"
        #: tasks given up because they ended their processes, for reports
        self.quarantined = 0

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, task: Any) -> Any:
        """The value of one task, or its Failure."""
        with closing(self._run((task,), lambda number: True)) as runs:
            return next(runs)[2]

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Values and Failures in the order of `tasks`, which is read lazily.

        Results run ahead of the oldest missing one by at most 8 for each worker.
        """
        waiting: dict[int, Any] = {}
        due = 0
        with closing(self._run(tasks, lambda number: number < due + 8 * self.workers)) as runs:
            for number, _, value in runs:
                waiting[number] = value
                while due in waiting:
                    due += 1
                    yield waiting.pop(due - 1)

    def as_completed(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """(task, value or Failure) as they finish; `tasks` is read lazily, one ahead for each worker."""
        with closing(self._run(tasks, lambda number: True)) as runs:
            for _, task, value in runs:
                yield task, value

    def close(self) -> None:
        """Ends the children. They start again if there is more work."""
        for child in list(self._children):
            self._drop(child)

    # -- the loop

    def _run(self, tasks: Iterable[Any], may_start: Callable[[int], bool]) -> Generator[tuple[int, Any, Any]]:
        with self._lock:
            jobs = (_Queued(number, task) for number, task in enumerate(tasks))
            ahead: deque[_Queued] = deque()
            self._again, self._done = again, done = deque[_Queued](), deque[tuple[_Queued, Any]]()
            try:
                while True:
                    ahead.extend(islice(jobs, self.workers - len(ahead)))
                    while again or (ahead and may_start(ahead[0].number)):
                        child = self._idle_child(len(ahead) + len(again))
                        if child is None:
                            break
                        self._give(child, again.popleft() if again else ahead.popleft())
                    if not ahead and not again and all(child.job is None for child in self._children):
                        return
                    self._wait()
                    while done:
                        job, value = done.popleft()
                        yield job.number, job.task, value
            finally:
                # an abandoned iterator: tasks that still run would answer the next one
                for child in [child for child in self._children if child.job is not None]:
                    self._drop(child)

    def _idle_child(self, num_jobs: int) -> _Child | None:
        """A child that can take a task. If there is none, starts as many as there are jobs and room for."""
        for child in self._children:
            if child.is_ready and child.job is None:
                return child
        starting = sum(not child.is_ready for child in self._children)
        for _ in range(min(num_jobs - starting, self.workers - len(self._children))):
            self._start()
        return None

    def _give(self, child: _Child, job: _Queued) -> None:
        child.job, child.note = job, ""
        child.outgoing.extend(pack(job.task))
        now = time.monotonic()
        child.limit = self.timeout(job.task) if callable(self.timeout) else self.timeout
        child.deadline, child.next_look = now + child.limit, now + _MEMORY_INTERVAL
        try:
            if not child.write():
                self._selector.register(child.tasks, selectors.EVENT_WRITE, (child, "tasks"))
        except OSError:  # it died while idle, of no task
            child.job = None
            self._drop(child)
            self._again.appendleft(job)

    def _wait(self) -> None:
        now = time.monotonic()
        until = min((min(child.deadline, child.next_look) for child in self._children), default=now)
        for key, _ in self._selector.select(max(0.0, min(until - now, 1.0))):
            child, what = key.data
            if child not in self._children:
                continue  # dropped by an earlier event of this round
            if what == "errors":
                if not child.read_errors():
                    self._selector.unregister(child.errors)
            elif what == "tasks":
                try:
                    if child.write():
                        self._selector.unregister(child.tasks)
                except OSError:
                    self._selector.unregister(child.tasks)  # the other pipe reports its end
            else:
                self._receive(child)
        self._watch()

    def _receive(self, child: _Child) -> None:
        try:
            message = child.unpacker.read(child.results)
        except (EOFError, OSError):
            self._lost(child, "crash", "")
            return
        # the message itself may be broken: a class that the parent cannot import
        except Exception as error:
            reason = f"its result cannot be read: {error}"
            self._finish(child, Failure("error", reason, type(error).__name__))
            self._drop(child)
            return
        if message is None:
            return
        kind, value = message[0]
        if kind == NOTE:
            child.note = value
        elif kind == READY:
            child.is_ready, child.deadline, self._starts_lost = True, float("inf"), 0
        elif child.job is None:
            assert kind == ERROR
            self._drop(child)
            raise WorkerStartError(value[1])
        elif kind == VALUE:
            self._finish(child, value)
        else:
            name, reason, is_transient, trace = value
            if name != "MemoryError":
                self._finish(child, Failure("error", reason, name, child.note, is_transient, trace))
                return
            # chance decides between the backstop and our watch, so both have one reason; its heap is not reused
            reason = self._too_much if self.memory_mb else reason
            self._finish(child, Failure("memory", reason, during=child.note, trace=trace))
            self._drop(child)

    def _finish(self, child: _Child, value: Any) -> None:
        assert child.job is not None
        self._done.append((child.job, value))
        child.job, child.deadline, child.next_look = None, float("inf"), float("inf")

    def _watch(self) -> None:
        now = time.monotonic()
        for child in list(self._children):
            if now >= child.deadline:
                self._lost(child, "timeout", f"it took longer than {child.limit:g} s")
            elif self.memory_mb and child.job is not None and now >= child.next_look:
                child.next_look = now + _MEMORY_INTERVAL
                if child.resident_mb() > self.memory_mb:
                    self._lost(child, "memory", self._too_much)

    def _lost(self, child: _Child, kind: Literal["crash", "timeout", "memory"], reason: str) -> None:
        """Ends a child: its task gets a strike; without one, the start has failed."""
        job, child.job = child.job, None
        how = self._drop(child)
        tail = child.tail.decode(errors="replace").strip()
        if job is None:
            if child.is_ready:
                return
            self._starts_lost += 1
            if kind == "timeout" or self._starts_lost >= 3:
                what = "does not start"
                if kind == "timeout":
                    what = f"did not start within {_START_TIMEOUT:g} s"
                raise WorkerStartError(f"a worker process {what}: {tail.splitlines()[-1] if tail else how}")
            return
        job.strikes += 1
        logger.debug("task %d, strike %d: %s; %s %s", job.number, job.strikes, reason or how, how, tail)
        if job.strikes < _STRIKES:
            self._again.append(job)
        else:
            self.quarantined += 1
            self._done.append((job, Failure(kind, reason or how, during=child.note, trace=tail)))

    # -- processes

    def _start(self) -> None:
        child = _spawner().submit(_spawn, self._env).result()
        child.outgoing.extend(pack(([*sys.path], self._blob, self.memory_mb)))
        child.deadline = time.monotonic() + _START_TIMEOUT
        self._children.append(child)
        self._selector.register(child.results, selectors.EVENT_READ, (child, "results"))
        self._selector.register(child.errors, selectors.EVENT_READ, (child, "errors"))
        self._selector.register(child.tasks, selectors.EVENT_WRITE, (child, "tasks"))

    def _drop(self, child: _Child) -> str:
        self._children.remove(child)
        for fd in (child.tasks, child.results, child.errors):
            with suppress(KeyError):
                self._selector.unregister(fd)
        return child.end()


def _spawn(env: dict[str, str]) -> _Child:
    tasks, to_child = os.pipe()
    from_child, results = os.pipe()
    from_errors, errors = os.pipe()
    ends = [str(number) for number in (tasks, results, os.getpid())]
    # the module is found where it was found here, whatever the working folder is by now
    paths = os.pathsep.join(path for path in sys.path if path)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ea_data.children.child", *ends],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            pass_fds=(tasks, results),
            env={**os.environ, "PYTHONPATH": paths, **env},
        )
    finally:
        for fd in (tasks, results, errors):
            os.close(fd)
    for fd in (to_child, from_child, from_errors):
        os.set_blocking(fd, False)
        _widen(fd)
    return _Child(process, to_child, from_child, from_errors)


def _widen(fd: int) -> None:
    """A larger pipe: fewer rounds for frames. Not every system has it."""
    if sys.platform.startswith("linux"):
        import fcntl

        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


@cache
def _spawner() -> ThreadPoolExecutor:
    """The one thread that starts all children. When the thread that started a child ends, the kernel takes that for
    the parent's death, so it must live as long as the process; a caller's thread may not."""
    return ThreadPoolExecutor(1, "ea-spawn")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_spawner.cache_clear)  # a fork has no threads but its own
