"""The server's side of a cluster: starts the head and a worker for each GPU, and starts again what dies."""

from __future__ import annotations

import logging
import os
import threading
import time
from importlib import import_module
from typing import Any

from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.files.safe import plain
from ea_runtime.serve.crew import (
    LONGEST_PAUSE,
    PAUSE,
    Settings,
    Worker,
    WorkerState,
    recover_others,
    sweep,
)
from ea_runtime.serve.jobs import JobStore, StoreError
from ea_runtime.serve.ray_workers.actor import RayWorker
from ea_runtime.serve.ray_workers.head import Head

logger = logging.getLogger("ea.serve")

#: threads of the head: calls of that many workers at once
_CALLS = 32
_LOOK_EVERY = 0.2


class RayWorkers:
    """The workers of a server on the cluster at `address`; "auto" finds one, "local" starts one on this machine.

    count: workers; None: one a GPU of the cluster, or one a node if it has none. Used as a Supervisor is.
    """

    def __init__(
        self, store: JobStore, settings: Settings | None = None, *, address: str, count: int | None = None
    ) -> None:
        self.store = store
        self.settings = settings or Settings()
        self.address = address
        self.count = count
        self._ray: Any = None
        self._is_ours = False
        self._head: Any = None
        self._stopping = threading.Event()
        self._deadline = 0.0
        self._members: list[_Member] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Joins the cluster and starts the workers; they are ready when they have imported torch.

        Raises MissingPackageError without Ray, UserError where the cluster cannot be joined.
        """
        self._ray = ray = import_ray()
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            join(ray, self.address)
        here = ray.get_runtime_context().get_node_id()
        strategies: Any = import_module("ray.util.scheduling_strategies")
        self._head = (
            ray.remote(Head)
            .options(
                num_cpus=0,
                max_concurrency=_CALLS,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(here, soft=False),
            )
            .remote(str(self.store.state.root))
        )
        gpus = int(ray.cluster_resources().get("GPU", 0))
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        for number in range(self.count or gpus or nodes):
            self._members.append(_Member(self, f"ray-{number}", has_gpu=gpus > 0))
        for member in self._members:
            self._run(member.keep, f"ea-{member.name}")
        self._run(self._tidy_up, "ea-ray-recovery")

    def workers(self) -> list[Worker]:
        """The workers as they are now."""
        try:
            busy = set(self.store.workers())
        except StoreError:
            busy = set()
        return [member.now(member.name in busy) for member in self._members]

    def drain(self, seconds: float = 30.0) -> None:
        """Asks all workers to save their places and end, and waits; those that take longer are killed."""
        self._deadline = time.monotonic() + seconds
        self._stopping.set()
        for thread in self._threads:
            thread.join(seconds + 10.0)
        if self._is_ours and self._ray is not None:
            self._ray.shutdown()

    def _tidy_up(self) -> None:
        sweep(self.store)
        recover_others(self.store, {member.name for member in self._members}, self._stopping)

    def _run(self, work: Any, name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


class _Member:
    """One worker: its actor, and what becomes of it."""

    def __init__(self, crew: RayWorkers, name: str, *, has_gpu: bool) -> None:
        self.crew = crew
        self.name = name
        self.device = "cuda" if has_gpu else "cpu"
        self.pid: int | None = None
        self.deaths = 0
        self._state: WorkerState = "starting"
        self._lines: tuple[str, ...] = ()

    def now(self, is_busy: bool) -> Worker:
        state = "busy" if self._state == "ready" and is_busy else self._state
        return Worker(self.name, self.device, state, self.deaths, self._lines)

    def keep(self) -> None:
        """Starts the worker again and again until the server stops."""
        stopping, pause = self.crew._stopping, PAUSE
        while not stopping.is_set():
            died = self._live()
            if stopping.is_set():
                break
            self.deaths += 1
            logger.error("worker %s ended with %s; it is started again", self.name, died)
            try:
                self.crew.store.recover(self.name, died)
            except StoreError as error:
                logger.error("%s", error)
            pause = min(2 * pause, LONGEST_PAUSE) if self.pid is None else PAUSE
            stopping.wait(pause)
        self._state = "down"

    def _live(self) -> str:
        """One life of the worker; how it ended, in words."""
        ray, stopping = self.crew._ray, self.crew._stopping
        self._state, self.pid = "starting", None
        needs = {"num_gpus": 1, "num_cpus": 1} if self.device == "cuda" else {"num_cpus": 1}
        actor = (
            ray.remote(RayWorker)
            .options(max_concurrency=3, runtime_env=_environment(), **needs)
            .remote(self.crew._head, self.name, self.crew.settings)
        )
        ready, ended = actor.ready.remote(), actor.run.remote()
        try:
            while not stopping.is_set():
                done, _ = ray.wait([ended] if self.pid is not None else [ready, ended], timeout=_LOOK_EVERY)
                if ended in done:
                    ray.get(ended)
                    return "no word"
                if ready in done:
                    self.pid, self._state = ray.get(ready), "ready"
            self._end(actor, ended)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            self._lines = tuple(str(cause or error).splitlines()[-5:])
            self._state = "down"
            return f"the loss of its process ({plain(cause, 100)})" if cause else "the loss of its process"
        return ""

    def _end(self, actor: Any, ended: Any) -> None:
        """Drains the worker; one that takes too long is killed, and its job put back."""
        ray = self.crew._ray
        actor.stop.remote()
        done, _ = ray.wait([ended], timeout=max(0.1, self.crew._deadline - time.monotonic()))
        ray.kill(actor)
        if not done:
            logger.error("worker %s did not end in time and is killed", self.name)
            self.crew.store.recover(self.name)


def import_ray() -> Any:
    """Ray, set so that it sends nothing about its use. Raises MissingPackageError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # under `uv run`, Ray would build an environment from the network on each node
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingPackageError(
            f"`--ray` needs Ray, which cannot be imported ({error}); run `pip install 'ea-runtime[ray]'`"
        ) from error


def join(ray: Any, address: str) -> None:
    """Joins a cluster, or starts one on this machine for "local". Raises UserError."""
    is_local = address == "local"
    own = {"include_dashboard": False} if is_local else {}
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
    except Exception as error:  # it also raises bare ones
        raise UserError(
            f"the Ray cluster {address!r} cannot be joined: {plain(error, 200)}; give HOST:PORT, `auto` or `local`"
        ) from error


def _environment() -> dict[str, Any]:
    """The workers' environment: their number of threads, which Ray would set itself, is the server's own."""
    threads = os.environ.get("OMP_NUM_THREADS")
    return {"env_vars": {"OMP_NUM_THREADS": threads}} if threads else {}
