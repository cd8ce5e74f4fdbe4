from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.serve.state import JOB_ID, LockTaken, StateFolder, new_job_id

HOLDER = """
import sys
from ea_runtime.serve.state import StateFolder
with StateFolder(sys.argv[1]).worker_lock("cpu"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "new" / "state")
    assert {path.name for path in state.root.iterdir()} == {"uploads", "runs", "results", "previews", "locks"}
    if os.name != "nt":
        assert all(path.stat().st_mode & 0o077 == 0 for path in (state.root, *state.root.iterdir()))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"state folder.*file.*--state") as error:
        StateFolder(tmp_path / "file" / "state")
    assert "\n" not in str(error.value)


def test_places_of_ids_alone(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    good = new_job_id()
    assert JOB_ID.fullmatch(good)
    assert state.result(good).parent == tmp_path / "results"
    for bad in ("", "..", "video_", f"{good}/..", f"../{good}", good.upper(), f"{good}\n", good[:-1]):
        for place in (state.run, state.result, state.preview, state.remove_files):
            with pytest.raises(ValueError, match="32 hex digits"):
                place(bad)


def test_one_server_a_folder(tmp_path: Path) -> None:
    with StateFolder(tmp_path).server_lock():
        with (
            pytest.raises(UserError, match=r"another `ea serve`.*--state") as error,
            StateFolder(tmp_path).server_lock(),
        ):
            pass
        assert "\n" not in str(error.value)
    with StateFolder(tmp_path).server_lock():
        pass


def test_names_of_workers(tmp_path: Path) -> None:
    for bad in ("", "../cpu", "CPU", "cuda:0", "a" * 65):
        with pytest.raises(ValueError, match="worker's name"), StateFolder(tmp_path).worker_lock(bad):
            pass


def test_a_lock_ends_with_its_process_even_if_killed(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockTaken), state.worker_lock("cpu"):
            pass
        with state.worker_lock("cuda0"):
            pass
    finally:
        holder.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with state.worker_lock("cpu", 5.0):
        pass
