"""The state folder of `ea serve`: the places in it, and locks that end with the process that holds them."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_state_path

from ea_runtime.errors import UserError

#: an id of a job, as `new_job_id` makes it
JOB_ID = re.compile(r"video_[0-9a-f]{32}")
#: a name of a worker: its lock is a file of that name
WORKER_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
_FOLDERS = ("uploads", "runs", "results", "previews", "locks")


class LockTaken(Exception):
    """Another process holds the lock."""


def new_job_id() -> str:
    """An id that nobody can guess: "video_" and 32 hex digits."""
    return f"video_{secrets.token_hex(16)}"


def default_state_folder() -> Path:
    """The user's own: `ea/serve` in the system's folder for state."""
    return user_state_path("ea", appauthor=False) / "serve"


class StateFolder:
    """The places in the folder that a server and its workers share, made for this user alone (mode 0700).

    Raises UserError for a folder that cannot be made or written.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in _FOLDERS:
                (self.root / name).mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(
                f"the state folder {str(self.root)!r} cannot be made: {error.strerror or error}; give another "
                "with --state"
            ) from error

    @property
    def database(self) -> Path:
        """The file of the jobs."""
        return self.root / "jobs.sqlite"

    @property
    def uploads(self) -> Path:
        """The folder of what clients sent."""
        return self.root / "uploads"

    def pictures(self, job_id: str) -> Path:
        """The folder of the pictures that a job starts from."""
        return self.uploads / _checked(job_id)

    def run(self, job_id: str) -> Path:
        """The folder of an unfinished run's saved state."""
        return self.root / "runs" / _checked(job_id)

    def result(self, job_id: str) -> Path:
        """The folder of a job's products."""
        return self.root / "results" / _checked(job_id)

    def preview(self, job_id: str) -> Path:
        """The latest preview picture of a job at work."""
        return self.root / "previews" / f"{_checked(job_id)}.webp"

    def remove_run(self, job_id: str) -> None:
        """Removes what only an unfinished job needs: saved state and preview."""
        shutil.rmtree(self.run(job_id), ignore_errors=True)
        self.preview(job_id).unlink(missing_ok=True)

    def remove_products(self, job_id: str) -> None:
        """Removes what a job made; the pictures that it started from stay, for another try."""
        self.remove_run(job_id)
        shutil.rmtree(self.result(job_id), ignore_errors=True)

    def remove_files(self, job_id: str) -> None:
        """Removes all files of a job."""
        self.remove_products(job_id)
        shutil.rmtree(self.pictures(job_id), ignore_errors=True)

    def job_ids(self) -> set[str]:
        """The ids of all jobs that have files here."""
        found = [
            path.name.removesuffix(".webp")
            for name in ("runs", "results", "previews", "uploads")
            for path in (self.root / name).iterdir()
        ]
        return {name for name in found if JOB_ID.fullmatch(name)}

    @contextmanager
    def server_lock(self) -> Iterator[None]:
        """Holds the folder for one server. Raises UserError if another one has it."""
        try:
            with self.lock("server"):
                yield
        except LockTaken:
            raise UserError(
                f"another `ea serve` uses the state folder {str(self.root)!r}; stop it, or give another folder with "
                "--state"
            ) from None

    @contextmanager
    def worker_lock(self, name: str, seconds: float = 0.0) -> Iterator[None]:
        """Holds a worker's name, so that one left over from a killed server and its successor never run together.

        seconds: how long to wait for it; -1: for ever. Raises LockTaken.
        """
        if not WORKER_NAME.fullmatch(name):
            raise ValueError(f"a worker's name must be lower-case letters, digits and -, got {name!r}")
        with self.lock(f"worker-{name}", seconds):
            yield

    @contextmanager
    def lock(self, name: str, seconds: float = 0.0) -> Iterator[None]:
        """Holds the lock `name`; the system frees it when the process ends, however that happens. Raises LockTaken."""
        lock = FileLock(self.root / "locks" / f"{name}.lock", timeout=seconds)
        try:
            lock.acquire(poll_interval=0.05)
        except Timeout:
            raise LockTaken(name) from None
        try:
            yield
        finally:
            lock.release()


def _checked(job_id: str) -> str:
    """An id as it is. Raises ValueError for what could lead elsewhere."""
    if not JOB_ID.fullmatch(job_id):
        raise ValueError(f"an id of a job is 'video_' and 32 hex digits, got {job_id[:60]!r}")
    return job_id
