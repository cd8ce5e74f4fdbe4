"""Settings of a server's workers, and their states as it sees them, wherever they run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ea_runtime.serve.jobs import JobStore, StoreError
from ea_runtime.serve.state import LockTaken

logger = logging.getLogger("ea.serve")

WorkerState = Literal["starting", "ready", "busy", "down"]
#: seconds between a death and the next start; while workers die before they are ready it doubles, up to the second
PAUSE, LONGEST_PAUSE = 0.2, 30.0
#: seconds between two looks for jobs of workers that are no longer started
_LOOK_EVERY = 0.5


@dataclass(frozen=True, slots=True)
class Loading:
    """The form in which workers hold models.

    quantize: of all models, as `ea generate` takes it (models/quantize.py). offload: where weights wait that are not in
    use (generation/offload_modes.py); "auto": for each job the cheapest that fits.
    """

    quantize: str | None = None
    offload: str = "none"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings that workers are started with.

    devices: "cuda:0", "mps", "cpu"; None: all CUDA devices, else the Apple GPU, else the CPU; a cluster has its own.
    models, loras: allowed folders. plugins: local plugin files. save_first, save_every: seconds of a run before its
    place is saved for the first time, and between two saves. loading: the form in which they hold models.
    """

    devices: Sequence[str] | None = None
    models: Sequence[str | Path] = ()
    loras: Sequence[str | Path] = ()
    plugins: Sequence[str | Path] = ()
    save_first: float = 30.0
    save_every: float = 30.0
    loading: Loading = field(default_factory=Loading)


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as it is now. deaths: times that it died by itself. lines: the last that it wrote to its stderr."""

    name: str
    device: str
    state: WorkerState
    deaths: int = 0
    lines: tuple[str, ...] = ()


def recover_others(store: JobStore, own: set[str], stopping: threading.Event) -> None:
    """Puts back the jobs of workers that this server does not start, once those have ended.

    own: names of the workers that it starts. Returns when there is none left, or when `stopping` is set.
    """
    while not stopping.is_set():
        others: list[str] = []
        try:
            others = [name for name in store.workers() if name not in own]
            for name in others:
                with suppress(LockTaken), store.state.worker_lock(name):
                    store.recover(name)
        except StoreError as error:
            logger.error("%s", error)
            others = ["not known"]
        if not others or stopping.wait(_LOOK_EVERY):
            return


def sweep(store: JobStore) -> None:
    """As `JobStore.sweep`; a store that cannot be read or written is logged, and keeps nobody from working."""
    try:
        store.sweep()
    except (StoreError, OSError) as error:
        logger.error("files of deleted jobs are not removed: %s", error)
