"""The head's side of a cluster: an actor on the server's own machine that has the store and the files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ea_runtime.files.atomic import atomic_file
from ea_runtime.serve.jobs import Job, JobStore
from ea_runtime.serve.state import StateFolder

#: files by name, as they travel through Ray's object store
Files = Mapping[str, bytes]
_LAST = "state.json"  # says what the others are


class Head:
    """The store of a state folder, for workers elsewhere. One a folder: a successor waits until this one is gone.

    Calls may come twice, as Ray repeats what it lost the answer to. They raise StoreError as the store does.
    """

    def __init__(self, root: str) -> None:
        self._state = StateFolder(root)
        self._held = ExitStack()
        self._held.enter_context(self._state.lock("ray-head", -1))
        self._store = JobStore(self._state)

    def claim(self, worker: str) -> Job | None:
        """The next job. A worker that asks has none in hand: an earlier answer may have been lost."""
        self._store.recover(worker)
        return self._store.claim(worker)

    def report(self, id: str, phase: str, done: int, total: int) -> bool:
        """See Link."""
        return self._store.report(id, phase, done, total)

    def saved(self, id: str) -> Files:
        """The saved state of a job's earlier attempt."""
        return read_files(self._state.run(id))

    def pictures(self, id: str) -> Files:
        """The pictures that a job starts from."""
        return read_files(self._state.pictures(id))

    def save(self, id: str, files: Files) -> None:
        """Takes the saved state of a job in place of an earlier one."""
        folder = self._state.run(id)
        folder.mkdir(mode=0o700, exist_ok=True)
        _write_files(folder, files)
        for old in folder.iterdir():
            if old.name not in files:
                old.unlink(missing_ok=True)

    def show(self, id: str, preview: bytes) -> None:
        """See Link."""
        with atomic_file(self._state.preview(id)) as partial:
            partial.write_bytes(preview)

    def finish(self, id: str, result: dict[str, Any], files: Files) -> None:
        """Puts a job's products in place, and completes it."""
        folder = self._state.result(id)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        _write_files(folder, files)
        self._store.finish(id, result)

    def fail(self, id: str, code: str, message: str) -> None:
        """See Link."""
        self._store.fail(id, code, message)

    def end_cancelled(self, id: str) -> None:
        """See Link."""
        self._store.end_cancelled(id)

    def hand_back(self, id: str) -> None:
        """See Link."""
        self._store.hand_back(id)


def read_files(folder: Path) -> Files:
    """Files directly in a folder, by name; none if it does not exist. Frames that were decoded are left out: large."""
    if not folder.is_dir():
        return {}
    named = [
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", "frames."))
    ]
    return {path.name: path.read_bytes() for path in named}


def _write_files(folder: Path, files: Files) -> None:
    for name in sorted(files, key=lambda one: one == _LAST):
        if Path(name).name != name:
            raise ValueError(f"a file of a job must be a name alone, got {name[:80]!r}")
        with atomic_file(folder / name) as partial:
            partial.write_bytes(files[name])
