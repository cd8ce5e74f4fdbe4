"""Keeps one worker process a device alive: starts it, starts it again when it dies, and drains it at the end.

    supervisor = Supervisor(store, Settings())
    supervisor.start()
    supervisor.workers()       # their states, for /healthz
    supervisor.drain(30.0)     # jobs at work save their places and are handed back

Imports no torch.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from typing import IO

from ea_runtime.errors import UserError
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

__all__ = ["Settings", "Supervisor", "Worker", "WorkerState", "environment", "find_devices", "how_it_died"]

logger = logging.getLogger("ea.serve")

#: as in worker/__main__.py, which the server cannot import without torch's way there being open
_READY = "ready"
_DEVICE_LOST = 3
_KEPT_LINES = 40
#: seconds to find out which devices there are
_PATIENCE = 120.0


class Supervisor:
    """The workers of a server, whose jobs `store` holds."""

    def __init__(self, store: JobStore, settings: Settings | None = None) -> None:
        self.store = store
        self.settings = settings or Settings()
        self._stopping = threading.Event()
        self._keepers: list[_Keeper] = []
        self._threads: list[threading.Thread] = []
        self._problem = ""

    def start(self) -> None:
        """Starts the workers and returns at once; they are ready when they have imported torch."""
        if self.settings.devices is not None:
            self._keepers = [self._keeper(device) for device in self.settings.devices]
        self._run(self._manage, "ea-supervisor")

    def workers(self) -> list[Worker]:
        """The workers as they are now; before the devices are known, one that is starting."""
        if not self._keepers:
            state: WorkerState = "down" if self._problem else "starting"
            return [Worker("worker", "", state, lines=(self._problem,) if self._problem else ())]
        try:
            busy = set(self.store.workers())
        except StoreError:
            busy = set()
        return [keeper.now(keeper.name in busy) for keeper in self._keepers]

    def drain(self, seconds: float = 30.0) -> None:
        """Asks all workers to save their places and end, and waits; those that take longer are killed."""
        self._stopping.set()
        deadline = time.monotonic() + seconds
        for keeper in self._keepers:
            keeper.ask_to_end()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for keeper in self._keepers:
            keeper.kill()
        for thread in self._threads:
            thread.join(5.0)

    def _manage(self) -> None:
        """Finds the devices, starts a keeper for each, and recovers jobs of workers that no longer exist."""
        sweep(self.store)
        try:
            if not self._keepers:
                self._keepers = [self._keeper(device) for device in find_devices()]
        except (UserError, OSError, subprocess.SubprocessError) as error:
            self._problem = str(error)
            logger.error("no workers can be started: %s", error)
            return
        for keeper in self._keepers:
            self._run(keeper.keep, f"ea-{keeper.name}")
        recover_others(self.store, {keeper.name for keeper in self._keepers}, self._stopping)

    def _keeper(self, device: str) -> _Keeper:
        return _Keeper(self.store, self.settings, device, self._stopping)

    def _run(self, work: object, name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)  # pyright: ignore[reportArgumentType]
        self._threads.append(thread)
        thread.start()


class _Keeper:
    """One worker: its process, and what becomes of it."""

    def __init__(self, store: JobStore, settings: Settings, device: str, stopping: threading.Event) -> None:
        self.store = store
        self.settings = settings
        self.device = device
        self.name = device.replace(":", "")
        self._stopping = stopping
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._state: WorkerState = "starting"
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.deaths = 0

    def now(self, is_busy: bool) -> Worker:
        state = "busy" if self._state == "ready" and is_busy else self._state
        return Worker(self.name, self.device, state, self.deaths, tuple(self._lines))

    def keep(self) -> None:
        """Starts the worker again and again until the supervisor stops."""
        pause = PAUSE
        while not self._stopping.is_set():
            code = self._live()
            was_ready, self._state = self._state == "ready", "down"
            if self._stopping.is_set():
                break
            died = how_it_died(code)
            if died is not None:
                self.deaths += 1
                # one that ends by itself says why, unlike one that is killed
                said = f" ({self._lines[-1]})" if code > 0 and self._lines else ""
                logger.error("worker %s ended with %s%s; it is started again", self.name, died, said)
            self._recover(died)
            pause = PAUSE if was_ready else min(2 * pause, LONGEST_PAUSE)
            self._stopping.wait(pause)

    def ask_to_end(self) -> None:
        """The end of its input asks a worker to save its place and end."""
        with self._lock:
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()

    def kill(self) -> None:
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                logger.error("worker %s did not end in time and is killed", self.name)
                self._process.kill()

    @property
    def pid(self) -> int | None:
        """The process, for tests that kill it."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def _live(self) -> int:
        """One life of the worker; returns its exit code."""
        self._state = "starting"
        with self._lock:
            if self._stopping.is_set():
                return 0
            self._process = process = subprocess.Popen(
                self._command(),
                env=environment(self.device),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        assert process.stdout is not None
        assert process.stderr is not None
        readers = [
            threading.Thread(target=self._read_words, args=(process.stdout,), daemon=True),
            threading.Thread(target=self._read_lines, args=(process.stderr,), daemon=True),
        ]
        for reader in readers:
            reader.start()
        code = process.wait()
        for reader in readers:
            reader.join(1.0)
        with self._lock:
            if process.stdin is not None:
                process.stdin.close()
        return code

    def _command(self) -> list[str]:
        s = self.settings
        words = ["--state", str(self.store.state.root), "--name", self.name]
        words += ["--device", "cuda:0" if self.device.startswith("cuda") else self.device]
        words += ["--offload", s.loading.offload]
        words += [] if s.loading.quantize is None else ["--quantize", s.loading.quantize]
        words += ["--save-first", f"{s.save_first}", "--save-every", f"{s.save_every}"]
        for option, values in (("--models", s.models), ("--loras", s.loras), ("--plugin", s.plugins)):
            for value in values:
                words += [option, str(value)]
        return [sys.executable, "-m", "ea_runtime.serve.worker", *words]

    def _read_words(self, stream: IO[str]) -> None:
        for line in stream:
            if line.strip() == _READY:
                self._state = "ready"

    def _read_lines(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.append(line.rstrip())
            logger.info("%s: %s", self.name, line.rstrip())

    def _recover(self, died: str | None) -> None:
        """Puts back what the worker had in hand; if the store cannot be written, its successor does it."""
        try:
            self.store.recover(self.name, died)
        except StoreError as error:
            logger.error("%s", error)


def how_it_died(code: int) -> str | None:
    """A worker's exit code in words: "SIGKILL", "exit code 1"; None for one that ended in an orderly way."""
    if code in (0, _DEVICE_LOST):
        return None
    if code > 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def environment(device: str) -> dict[str, str]:
    """A worker's environment: of several CUDA devices it sees its own alone, as cuda:0.

    So a file does not depend on which device made it: it records the device's name.
    """
    found = dict(os.environ)
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
        found["CUDA_VISIBLE_DEVICES"] = visible[number] if number < len(visible) else str(number)
    return found


def find_devices() -> list[str]:
    """The devices of this machine, found in a separate process. Raises UserError."""
    command = [sys.executable, "-m", "ea_runtime.serve.worker.devices"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL
    )
    try:
        return [str(one) for one in json.loads(done.stdout)]
    except (ValueError, TypeError) as error:
        last = (done.stderr.strip().splitlines() or ["no reason is given"])[-1]
        raise UserError(f"the devices cannot be listed: {last}; give one with --device") from error
