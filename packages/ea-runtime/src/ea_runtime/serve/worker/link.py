"""A worker's way to the store: the state folder itself here, calls to the head on a cluster (ray_workers/link.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ea_runtime.files.atomic import atomic_file
from ea_runtime.serve.jobs import Job, JobStore


@dataclass(frozen=True, slots=True)
class Places:
    """Folders of one job on this machine.

    run: of its saved state. result: of its products; emptied before a run. pictures: of those that it starts from.
    """

    run: Path
    result: Path
    pictures: Path


class Link(Protocol):
    """A worker's side of the store. Raises StoreError where the store cannot be written."""

    def claim(self) -> Job | None:
        """The next job, or None if none waits."""
        ...

    def open(self, job: Job) -> Places:
        """The job's folders; what was saved of an earlier attempt is in `run`."""
        ...

    def report(self, job: Job, phase: str, done: int, total: int) -> bool:
        """Notes how far the job is. False: stop, it was cancelled or deleted."""
        ...

    def show(self, job: Job, preview: bytes) -> None:
        """The latest preview, a WebP picture."""
        ...

    def finish(self, job: Job, result: dict[str, Any]) -> None:
        """Completes a job whose products are in its folder."""
        ...

    def fail(self, job: Job, code: str, message: str) -> None:
        """Ends a job that cannot be done. message: one line."""
        ...

    def end_cancelled(self, job: Job) -> None:
        """Ends a job that was asked to stop."""
        ...

    def hand_back(self, job: Job) -> None:
        """Puts a job back into the queue, its place saved."""
        ...


class StoreLink:
    """The state folder itself. worker: this worker's name."""

    def __init__(self, store: JobStore, worker: str) -> None:
        self.store = store
        self.worker = worker

    def claim(self) -> Job | None:
        """See Link."""
        return self.store.claim(self.worker)

    def open(self, job: Job) -> Places:
        """See Link."""
        state = self.store.state
        state.result(job.id).mkdir(mode=0o700, exist_ok=True)
        return Places(state.run(job.id), state.result(job.id), state.pictures(job.id))

    def report(self, job: Job, phase: str, done: int, total: int) -> bool:
        """See Link."""
        return self.store.report(job.id, phase, done, total)

    def show(self, job: Job, preview: bytes) -> None:
        """See Link."""
        with atomic_file(self.store.state.preview(job.id)) as partial:
            partial.write_bytes(preview)

    def finish(self, job: Job, result: dict[str, Any]) -> None:
        """See Link."""
        self.store.finish(job.id, result)

    def fail(self, job: Job, code: str, message: str) -> None:
        """See Link."""
        self.store.fail(job.id, code, message)

    def end_cancelled(self, job: Job) -> None:
        """See Link."""
        self.store.end_cancelled(job.id)

    def hand_back(self, job: Job) -> None:
        """See Link."""
        self.store.hand_back(job.id)
