from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_runtime.errors import UserError
from ea_runtime.serve import state as module
from ea_runtime.serve.state import JOB_ID, LockTaken, StateFolder, default_state_folder, new_job_id

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


@given(text=st.text("video_0123abF/.\\\n", max_size=40), length=st.integers(31, 33))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_no_text_but_an_id_is_a_place(
    tmp_path_factory: pytest.TempPathFactory, text: str, length: int
) -> None:
    state = StateFolder(tmp_path_factory.getbasetemp() / "ids")
    for name in (text, f"video_{text}", "video_" + "0" * length, "video_" + "g" * 32, "Video_" + "0" * 32):
        if name == "video_" + "0" * 32:
            assert state.result(name).parent == state.root / "results"
            continue
        with pytest.raises(ValueError, match="an id of a job is 'video_' and 32 hex digits, got"):
            state.result(name)


def filled(root: Path) -> tuple[StateFolder, str]:
    """A folder with every kind of file of a job."""
    state, job = StateFolder(root), new_job_id()
    for place in (state.run(job), state.result(job), state.pictures(job)):
        place.mkdir()
        (place / "file").write_text("x")
    state.preview(job).write_text("x")
    return state, job


def test_places_in_the_folder(tmp_path: Path) -> None:
    state, job = filled(tmp_path / "state")
    root = tmp_path / "state"
    assert (state.root, state.database, state.uploads) == (root, root / "jobs.sqlite", root / "uploads")
    assert state.pictures(job) == root / "uploads" / job
    assert state.run(job) == root / "runs" / job
    assert state.result(job) == root / "results" / job
    assert state.preview(job) == root / "previews" / f"{job}.webp"
    assert len({new_job_id() for _ in range(50)}) == 50
    assert default_state_folder().parts[-2:] == ("ea", "serve")


def test_a_home_is_expanded_and_a_place_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert StateFolder("~/own").root == tmp_path / "own"
    assert StateFolder("here").root == tmp_path / "here"
    assert StateFolder("here").root.is_dir()  # it may be there already


@pytest.mark.parametrize(
    ("remove", "left"),
    [
        ("remove_run", ["results", "uploads"]),
        ("remove_products", ["uploads"]),
        ("remove_files", []),
    ],
)
def test_what_a_job_no_longer_needs_is_removed(tmp_path: Path, remove: str, left: list[str]) -> None:
    state, job = filled(tmp_path)
    other = new_job_id()
    state.result(other).mkdir()
    getattr(state, remove)(job)
    getattr(state, remove)(job)  # a second time is no error
    assert sorted(path.parent.name for path in tmp_path.glob(f"*/{job}*")) == left
    assert state.result(other).is_dir()


def test_jobs_that_have_files(tmp_path: Path) -> None:
    state, job = filled(tmp_path)
    assert state.job_ids() == {job}
    for place in (StateFolder.run, StateFolder.result, StateFolder.pictures, StateFolder.preview):
        one = new_job_id()
        place(state, one).mkdir()
        assert one in state.job_ids()
    (tmp_path / "results" / "note.txt").write_text("x")
    (tmp_path / "locks" / new_job_id()).mkdir()
    assert len(state.job_ids()) == 5


def test_locks_of_other_names_are_free_and_one_waits(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    with state.worker_lock("a" * 64), state.server_lock(), state.lock("x"):
        assert sorted(path.name for path in (tmp_path / "locks").iterdir()) == sorted(
            ["server.lock", f"worker-{'a' * 64}.lock", "x.lock"]
        )
        with pytest.raises(LockTaken, match="x"), StateFolder(tmp_path).lock("x", 0.1):
            pass
    with pytest.raises(KeyError), state.lock("x"):
        raise KeyError
    with state.lock("x"):
        pass


def test_a_lock_that_is_taken_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless seconds are given; and it is let go at the end, whoever else refers to it."""
    made: list[tuple[FileLock, float]] = []

    def note(place: Path, timeout: float) -> FileLock:
        made.append((FileLock(place, timeout=timeout), timeout))
        return made[-1][0]

    monkeypatch.setattr(module, "FileLock", note)
    state = StateFolder(tmp_path)
    with state.lock("x"), state.server_lock(), state.worker_lock("cpu"), state.worker_lock("gpu", -1):
        assert all(one.is_locked for one, _ in made)
    assert [seconds for _, seconds in made] == [0, 0, 0, -1]
    assert not any(one.is_locked for one, _ in made)
