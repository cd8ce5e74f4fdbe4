"""A worker's link to the store through calls to the head; files travel through Ray's object store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ea_runtime.serve.jobs import Job
from ea_runtime.serve.ray_workers.head import read_files
from ea_runtime.serve.worker.link import Places

_STATE = "state.json"


class RayLink:
    """See Link. head: the actor's handle. worker: this worker's name. folder: of this worker alone, for its files."""

    def __init__(self, ray: Any, head: Any, worker: str, folder: Path) -> None:
        self._ray = ray
        self._head = head
        self._worker = worker
        self._folder = folder
        self._saved: tuple[int, int] | None = None

    def claim(self) -> Job | None:
        """See Link."""
        return self._call("claim", self._worker)

    def open(self, job: Job) -> Places:
        """See Link."""
        folder = self._folder / job.id
        places = Places(folder / "run", folder / "result", folder / "pictures")
        places.run.mkdir(parents=True, exist_ok=True)
        places.result.mkdir(exist_ok=True)
        for name, content in self._call("saved", job.id).items():
            (places.run / Path(name).name).write_bytes(content)
        self._saved = _stamp(places.run / _STATE)
        if job.request.get("pictures"):
            places.pictures.mkdir(exist_ok=True)
            for name, content in self._call("pictures", job.id).items():
                (places.pictures / Path(name).name).write_bytes(content)
        return places

    def report(self, job: Job, phase: str, done: int, total: int) -> bool:
        """See Link. What was saved since the last report goes to the head."""
        self._save(job)
        return self._call("report", job.id, phase, done, total)

    def show(self, job: Job, preview: bytes) -> None:
        """See Link."""
        self._head.show.remote(job.id, preview)

    def finish(self, job: Job, result: dict[str, Any]) -> None:
        """See Link."""
        files = read_files(self._folder / job.id / "result")
        self._call("finish", job.id, result, self._ray.put(files))
        self._forget(job)

    def fail(self, job: Job, code: str, message: str) -> None:
        """See Link."""
        self._call("fail", job.id, code, message)
        self._forget(job)

    def end_cancelled(self, job: Job) -> None:
        """See Link."""
        self._call("end_cancelled", job.id)
        self._forget(job)

    def hand_back(self, job: Job) -> None:
        """See Link."""
        self._save(job)
        self._call("hand_back", job.id)
        self._forget(job)

    def _save(self, job: Job) -> None:
        run = self._folder / job.id / "run"
        stamp = _stamp(run / _STATE)
        if stamp is not None and stamp != self._saved:
            self._call("save", job.id, self._ray.put(read_files(run)))
            self._saved = stamp

    def _forget(self, job: Job) -> None:
        shutil.rmtree(self._folder / job.id, ignore_errors=True)
        self._saved = None

    def _call(self, name: str, *words: Any) -> Any:
        from ea_runtime.serve.jobs import StoreError

        try:
            return self._ray.get(getattr(self._head, name).remote(*words))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, StoreError):
                raise StoreError(str(error.cause)) from error
            raise


def _stamp(path: Path) -> tuple[int, int] | None:
    """Time and inode of a file that is replaced as a whole; None without it."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino
