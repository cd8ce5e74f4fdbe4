"""Workers and servers killed at random times: every job ends, none is lost or made twice, all bytes are right."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ea_runtime.serve.catalogue import Catalogue
from ea_runtime.serve.jobs import Job, JobStore
from ea_runtime.serve.orders import make_order
from ea_runtime.serve.state import StateFolder

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="SIGSTOP and SIGKILL are POSIX's"),
    pytest.mark.slow,
]

DRIVER = Path(__file__).parent / "driver.py"
FIELDS: dict[str, Any] = {"prompt": "a red circle moves right", "num_frames": 18, "steps": 12}
#: long enough to be met in the middle; one request, so that its undisturbed file is made once
LONG: dict[str, Any] = {**FIELDS, "size": "128x128", "num_frames": 9, "steps": 30, "seed": 5}
NEVER = 1e9
#: seconds that one job may take at worst, a worker's start included
PATIENCE = 240.0


class Server:
    """The driver's process and its workers'."""

    def __init__(self, root: Path, save_first: float, save_every: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(root), f"{save_first}", f"{save_every}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.worker: int | None = None
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "started\n", "a killed server's folder is free at once"
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.worker = int(line.split()[1])

    def kill(self) -> None:
        """SIGKILL; its worker lives on until it notices."""
        self.process.kill()
        self.close()

    def close(self) -> None:
        """Ends it as a server ends: drained."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process.wait(timeout=60)


class Rush:
    """Jobs, a server that makes them, and kills."""

    def __init__(self, root: Path, save_first: float = 0.0, save_every: float = 0.0) -> None:
        self.root = root
        self.saving = (save_first, save_every)
        self.store = JobStore(StateFolder(root), max_queued=99, max_per_client=99)
        self.marks: set[tuple[str, str, int]] = set()
        self.server = Server(root, *self.saving)

    def add(self, **fields: Any) -> str:
        """Adds a job; returns its id."""
        return self.store.add(make_order({**FIELDS, **fields}, Catalogue()), "me").id

    def at_work(self) -> Job | None:
        """The job that is at work."""
        jobs, _ = self.store.list(1, states=["in_progress"])
        return jobs[0] if jobs else None

    def wait_until(self, condition: Any, what: str) -> Any:
        """Returns what the condition gives once it is true."""
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < deadline, f"waited too long until {what}"
            time.sleep(0.004)
        return found

    def kill_worker(self, *, twice_at_one_place: bool = False) -> Job | None:
        """Kills the worker with its job; None if it has none, or if a worker died with it at that very place before."""
        pid = self.server.worker
        if pid is None:
            return None
        try:
            os.kill(pid, signal.SIGSTOP)  # so that it does not get on between the look and the kill
        except ProcessLookupError:
            return None
        job = self.at_work()
        mark = None if job is None else (job.id, job.phase, job.done)
        if mark is None or (mark in self.marks and not twice_at_one_place):
            os.kill(pid, signal.SIGCONT)
            return None
        self.marks.add(mark)
        self.server.worker = None
        os.kill(pid, signal.SIGKILL)
        return job

    def is_noticed(self, killed: Job) -> bool:
        """The server knows that the worker of this job is gone, even if another has the job by now."""
        job = self.store.get(killed.id)
        assert job is not None
        return job.state != "in_progress" or job.attempts > killed.attempts

    def kill_server(self, *, with_worker: bool) -> None:
        """Kills the server, and starts another at once, which may meet the old one's worker."""
        pid = self.server.worker
        self.server.kill()
        if with_worker and pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.server = Server(self.root, *self.saving)

    def has_ended(self, ids: list[str]) -> bool:
        return all((job := self.store.get(id)) is not None and job.has_ended for id in ids)

    def made(self, id: str) -> bytes:
        job = self.store.get(id)
        assert job is not None
        assert job.result is not None, job
        return (self.store.state.result(id) / job.result["files"]["video"]).read_bytes()


@contextmanager
def rush(root: Path, **saving: float) -> Iterator[Rush]:
    pytest.importorskip("ea_vae")
    pytest.importorskip("ea_dit")
    one = Rush(root, **saving)
    try:
        yield one
    finally:
        one.server.close()


def test_kills_at_random_times_lose_nothing(tmp_path: Path, undisturbed: Any) -> None:
    """50 kills and 20 jobs under EA_FULL=1, else 3 and 3; more jobs where these end before the kills are done."""
    num_kills, num_jobs = (50, 20) if os.environ.get("EA_FULL") else (3, 3)
    draw = random.Random(11)
    ways = ["worker", "server", "worker", "both"]  # a few kills are of each way; many are drawn
    if num_kills > len(ways):
        ways = draw.choices(["worker", "server", "both"], [3, 1, 1], k=num_kills)
    kinds = [{"seed": seed, "num_frames": draw.choice([9, 18]), "steps": 12} for seed in range(num_jobs)]
    completed: list[str] = []
    kills = {"worker": 0, "server": 0, "both": 0}
    with rush(tmp_path) as one:
        ids = [one.add(**kind) for kind in kinds]
        version = 0
        while not one.has_ended(ids) or sum(kills.values()) < num_kills:
            if one.has_ended(ids):
                kinds.append({"seed": len(ids), "num_frames": 18, "steps": 12})
                ids.append(one.add(**kinds[-1]))
            changed, gone, version = one.store.changes(version)
            assert not gone
            for job in changed:
                if job.state == "completed" and job.id not in completed:
                    completed.append(job.id)
                assert (job.state == "completed") == (job.id in completed), "a completed job stays completed"
            left, done = num_kills - sum(kills.values()), sum(job.has_ended for job in one.store.list(99)[0])
            # spread over all jobs: the last one is not killed more often than the others
            if left > 0 and (num_kills - left) * num_jobs <= num_kills * (done + 1):
                one.wait_until(lambda: one.at_work() or one.has_ended(ids), "a job is at work")
                time.sleep(draw.uniform(0, 1.0))
                way = ways[num_kills - left]
                if way == "worker":
                    kills["worker"] += one.kill_worker() is not None
                elif one.at_work() is not None:
                    one.kill_server(with_worker=way == "both")
                    kills[way] += 1
            time.sleep(0.02)
        jobs, has_more = one.store.list(99, order="asc")
        assert not has_more
        assert [(job.id, job.state) for job in jobs] == [(id, "completed") for id in ids]
        assert sum(kills.values()) == num_kills, kills
        assert kills["worker"] > num_kills // 3
        for id, kind in zip(ids, kinds, strict=True):
            assert one.made(id) == undisturbed(**{**FIELDS, **kind})
        assert not list((tmp_path / "runs").iterdir()), "nothing unfinished is left"
        # only a worker's death counts, unless the server was killed before it noticed
        assert len(ids) <= sum(job.attempts for job in jobs) <= len(ids) + kills["worker"]


@pytest.mark.parametrize("is_saved", [True, False], ids=["saved", "the twin without saved state"])
def test_a_job_killed_late_continues_where_it_was(tmp_path: Path, undisturbed: Any, is_saved: bool) -> None:
    saving = {"save_first": 0.0 if is_saved else NEVER}
    with rush(tmp_path, **saving) as one:
        id = one.add(**LONG)

        def is_late() -> bool:
            job = one.at_work()
            return job is not None and job.phase == "denoising" and job.done >= 20

        one.wait_until(is_late, "the job is late")
        killed = one.kill_worker()
        assert killed is not None
        one.wait_until(partial(one.is_noticed, killed), "the death is noticed")

        def first_step() -> int:
            job = one.at_work()
            return job.done if job is not None and job.phase == "denoising" and job.done else 0

        start = one.wait_until(first_step, "the job is at work again")
        assert (start >= 10) == is_saved
        one.wait_until(lambda: one.has_ended([id]), "the job ends")
        assert one.made(id) == undisturbed(**LONG)


def test_a_job_that_kills_its_worker_twice_fails_and_the_queue_goes_on(
    tmp_path: Path, undisturbed: Any
) -> None:
    slow = {"size": "192x192"}  # its first step is long enough to be caught
    with rush(tmp_path, save_first=NEVER) as one:
        poison, good = one.add(seed=1, **slow), one.add(seed=2)
        for _ in range(2):

            def is_loading() -> bool:
                job = one.at_work()
                return job is not None and job.id == poison and (job.phase, job.done) == ("denoising", 0)

            one.wait_until(is_loading, "the job is at the place where it dies")
            killed = one.kill_worker(twice_at_one_place=True)
            assert killed is not None
            if (killed.phase, killed.done) != ("denoising", 0):
                pytest.skip("the machine is too busy to kill a worker twice at one place")
            one.wait_until(partial(one.is_noticed, killed), "the death is noticed")
        one.wait_until(lambda: one.has_ended([poison, good]), "both jobs end")
        job = one.store.get(poison)
        assert job is not None
        assert (job.state, job.error_code) == ("failed", "worker_died")
        assert "SIGKILL" in str(job.error_message)
        assert "denoising, 0 of 12" in str(job.error_message)
        assert one.made(good) == undisturbed(**{**FIELDS, "seed": 2})


def test_a_server_that_is_asked_to_stop_drains(tmp_path: Path, undisturbed: Any) -> None:
    with rush(tmp_path, save_first=NEVER) as one:
        id = one.add(**LONG)
        one.wait_until(lambda: (job := one.at_work()) is not None and job.done >= 5, "the job is at work")
        one.server.close()
        assert one.server.process.returncode == 0
        job = one.store.get(id)
        assert job is not None
        assert (job.state, job.attempts, job.position) == ("queued", 0, 1)
        assert (one.store.state.run(id) / "state.json").is_file()
        one.server = Server(tmp_path, *one.saving)
        one.wait_until(lambda: one.has_ended([id]), "the job ends")
        assert one.made(id) == undisturbed(**LONG)
