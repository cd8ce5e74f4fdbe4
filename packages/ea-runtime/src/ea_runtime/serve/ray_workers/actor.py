"""A worker on a cluster: the same loop as a worker process, with the head in place of the state folder."""

from __future__ import annotations

import os
import tempfile
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

from ea_runtime.machine.allocator import tune_allocator
from ea_runtime.plugins.host import make_host, set_host
from ea_runtime.serve.catalogue import Catalogue
from ea_runtime.serve.crew import Settings
from ea_runtime.serve.worker.stopping import Stop


class RayWorker:
    """An actor; `run` makes jobs until `stop` is called. Calls run in threads next to each other."""

    def __init__(self, head: Any, name: str, settings: Settings) -> None:
        self._head = head
        self._name = name
        self._settings = settings
        self._stop = Stop()
        self._is_ready = threading.Event()

    def run(self) -> None:
        """Makes jobs until it is stopped. Raises what a worker process would end with: UserError, DeviceLost."""
        tune_allocator()  # before torch is imported
        s = self._settings
        set_host(make_host(s.plugins))
        catalogue = Catalogue(s.models, s.loras)
        ray: Any = import_module("ray")
        device = "cuda:0" if ray.get_gpu_ids() else "cpu"
        from ea_runtime.serve.ray_workers.link import RayLink
        from ea_runtime.serve.worker.loop import serve_jobs
        from ea_runtime.serve.worker.making_job import JobMaker, Saving
        from ea_runtime.serve.worker.models import Models

        with tempfile.TemporaryDirectory(prefix="ea-ray-") as folder:
            link = RayLink(ray, self._head, self._name, Path(folder))
            models, saving = Models(device, loading=s.loading), Saving(s.save_first, s.save_every)
            make = JobMaker(link, models, catalogue, self._stop, saving)
            serve_jobs(link, make, self._stop, self._is_ready.set)

    def ready(self) -> int:
        """Returns this process's id once it takes jobs."""
        self._is_ready.wait()
        return os.getpid()

    def stop(self) -> None:
        """Asks the worker to save its place, hand its job back, and end."""
        self._stop.set()
