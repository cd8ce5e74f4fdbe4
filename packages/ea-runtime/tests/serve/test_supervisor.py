from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ea_runtime.errors import UserError
from ea_runtime.serve import crew, supervisor
from ea_runtime.serve.crew import Settings, recover_others
from ea_runtime.serve.jobs import JobStore
from ea_runtime.serve.state import StateFolder
from ea_runtime.serve.supervisor import Supervisor, environment, find_devices, how_it_died

GOOD = """
import sys
print("ready", flush=True)
sys.stderr.write("a line of the worker\\n")
sys.stderr.flush()
sys.stdin.read()
"""
STUBBORN = "import time; print('ready', flush=True); time.sleep(600)"
BROKEN = "import sys; sys.exit('error: no such device')"


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(StateFolder(tmp_path))


@pytest.fixture
def start(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Supervisor]]:
    """start(code, devices): a supervisor whose workers run some code in place of the program."""
    made: list[Supervisor] = []

    def begin(code: str, *devices: str) -> Supervisor:
        monkeypatch.setattr(supervisor._Keeper, "_command", lambda keeper: [sys.executable, "-c", code])
        one = Supervisor(store, Settings(devices=devices or ("cpu",)))
        one.start()
        made.append(one)
        return one

    yield begin
    for one in made:
        one.drain(0.1)


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_worker_a_device_and_its_state(start: Any, store: JobStore) -> None:
    one = start(GOOD, "cuda:0", "cuda:1")
    assert [(worker.name, worker.device) for worker in one.workers()] == [
        ("cuda0", "cuda:0"),
        ("cuda1", "cuda:1"),
    ]
    wait_until(lambda: all(worker.state == "ready" and worker.lines for worker in one.workers()))
    assert one.workers()[0].lines == ("a line of the worker",)
    store.add({}, "me")
    store.claim("cuda1")
    assert [worker.state for worker in one.workers()] == ["ready", "busy"]
    start_of_drain = time.monotonic()
    one.drain(20.0)
    assert time.monotonic() - start_of_drain < 10
    assert [(worker.state, worker.deaths) for worker in one.workers()] == [("down", 0), ("down", 0)]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_a_worker_that_dies_is_started_again_and_its_job_put_back(start: Any, store: JobStore) -> None:
    one = start(GOOD)
    id = store.add({}, "me").id
    for deaths in (1, 2):
        wait_until(lambda: one.workers()[0].state == "ready")
        store.claim("cpu")
        store.report(id, "denoising", 4, 9)
        os.kill(one._keepers[0].pid, signal.SIGKILL)
        wait_until(lambda: one.workers()[0].deaths == deaths)  # noqa: B023
        wait_until(lambda: store.get(id).state != "in_progress")  # pyright: ignore
    job = store.get(id)
    assert job is not None
    assert (job.state, job.error_code) == ("failed", "worker_died")
    assert "SIGKILL" in str(job.error_message)


def test_one_that_cannot_start_is_tried_ever_more_rarely(
    start: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "PAUSE", 0.05)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.2)
    with caplog.at_level(logging.ERROR, "ea.serve"):
        one = start(BROKEN)
        wait_until(lambda: one.workers()[0].deaths >= 3)
    assert set(one.workers()[0].lines) == {"error: no such device"}
    assert "worker cpu ended with exit code 1 (error: no such device)" in caplog.text


def test_a_worker_that_does_not_end_is_killed_in_time(start: Any) -> None:
    one = start(STUBBORN)
    wait_until(lambda: one.workers()[0].state == "ready")
    began = time.monotonic()
    one.drain(0.5)
    assert 0.5 <= time.monotonic() - began < 8
    assert one._keepers[0].pid is None


def test_jobs_of_workers_that_are_gone_are_put_back(store: JobStore) -> None:
    id = store.add({}, "me").id
    store.claim("cuda7")
    with store.state.worker_lock("cuda7"):
        stopping = threading.Event()
        thread = threading.Thread(target=recover_others, args=(store, {"cpu"}, stopping))
        thread.start()
        time.sleep(0.2)
        job = store.get(id)
        assert job is not None
        assert job.state == "in_progress", "its worker still saves its place"
    thread.join(10)
    job = store.get(id)
    assert job is not None
    assert (job.state, job.attempts) == ("queued", 0)
    store.claim("cpu")
    recover_others(store, {"cpu"}, stopping)
    job = store.get(id)
    assert job is not None
    assert job.state == "in_progress", "one of our own"


def test_how_workers_end_in_words() -> None:
    assert how_it_died(0) is None
    assert how_it_died(supervisor._DEVICE_LOST) is None
    assert how_it_died(1) == "exit code 1"
    if os.name != "nt":
        assert how_it_died(-9) == "SIGKILL"
        assert how_it_died(-11) == "SIGSEGV"
        assert how_it_died(-99) == "signal 99"


def test_the_programs_agree_on_their_words() -> None:
    from ea_runtime.serve.worker import __main__ as program

    assert (program.READY, program.DEVICE_LOST) == (supervisor._READY, supervisor._DEVICE_LOST)


def test_a_worker_sees_its_own_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment("cuda")["CUDA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in environment("cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    assert environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "GPU-abc"


def test_devices_that_cannot_be_listed_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        stdout, stderr = "", "Traceback\nImportError: no torch here\n"

    monkeypatch.setattr(supervisor.subprocess, "run", lambda *args, **kwargs: Done)
    with pytest.raises(UserError, match=r"no torch here.*--device") as error:
        find_devices()
    assert "\n" not in str(error.value)


def test_no_devices_are_reported_by_the_workers(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise UserError("the devices cannot be listed")

    monkeypatch.setattr(supervisor, "find_devices", broken)
    one = Supervisor(store, Settings())
    assert [worker.state for worker in one.workers()] == ["starting"]
    one.start()
    wait_until(lambda: one.workers()[0].state == "down")
    assert one.workers()[0].lines == ("the devices cannot be listed",)
    one.drain(1.0)


def test_a_store_that_cannot_be_swept_is_logged(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "sweep", lambda: (_ for _ in ()).throw(OSError("read-only")))
    crew.sweep(store)
    assert "read-only" in caplog.text
