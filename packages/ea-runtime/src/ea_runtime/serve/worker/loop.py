"""The loop of a worker: claim, make, again, until it is to end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

from ea_runtime.machine.light_imports import import_diffusers, without_collecting
from ea_runtime.plugins.host import get_host
from ea_runtime.serve.jobs import StoreError
from ea_runtime.serve.worker.link import Link
from ea_runtime.serve.worker.making_job import JobMaker
from ea_runtime.serve.worker.stopping import Stop

logger = logging.getLogger("ea.serve")

#: seconds between two looks at an empty queue, and at a store that cannot be read
_IDLE, _TROUBLE = 0.05, 1.0


def serve_jobs(link: Link, make: JobMaker, stop: Stop, on_ready: Callable[[], None] | None = None) -> None:
    """Makes jobs until `stop` is set. on_ready: called before the first claim. Raises DeviceLost."""
    warm_up()
    if on_ready is not None:
        on_ready()
    while not stop.is_set:
        try:
            job = link.claim()
        except StoreError as error:
            logger.error("%s", error)
            stop.wait(_TROUBLE)
            continue
        if job is None:
            stop.wait(_IDLE)
            continue
        make(job)


def warm_up() -> None:
    """Imports what the first job would wait for; a part that is broken is reported by the job that needs it."""
    with without_collecting():
        import_module("torch")
        import_diffusers()
        for name in ("ea_runtime.generation.pipeline", "ea_runtime.text.t5", "ea_runtime.video.writers"):
            import_module(name)
        _ = import_module("transformers").PreTrainedTokenizerFast
        host = get_host()
        for kind in ("vaes", "denoisers", "samplers"):
            for record in host.records(kind):
                with suppress(Exception):
                    host.get(kind, record).build()
