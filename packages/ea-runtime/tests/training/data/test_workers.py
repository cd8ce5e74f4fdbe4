"""Fetching in separate processes: order, failures, and no process that outlives the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ea_runtime.errors import UserError
from ea_runtime.training.data.workers import Fetcher, FetchJob
from ea_runtime.training.recipe import Batch
from ea_runtime.training.run.loop import Trainer

Make = Callable[..., Trainer]


def fetch(indices: list[int], seed: int, step: int) -> Batch:
    if step == 3:
        time.sleep(0.1)  # later jobs overtake it
    return Batch(indices, {"x": torch.full((2, 3), float(seed + step)), "pid": os.getpid()})


def jobs_of(step: int) -> list[FetchJob]:
    return [FetchJob([step, part], 100, step) for part in range(step % 3)]


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    fetcher = Fetcher(fetch, jobs_of, 2, 12)
    yield fetcher
    fetcher.close()


def test_in_order_whatever_is_ready_first(fetcher: Fetcher) -> None:
    pids = set()
    for step in range(12):
        parts = fetcher.batches(step)
        assert [part.indices for part in parts] == [[step, part] for part in range(step % 3)]
        assert all(torch.equal(part.tensors["x"], torch.full((2, 3), 100.0 + step)) for part in parts)
        pids |= {part.tensors["pid"] for part in parts}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_from_another_place(fetcher: Fetcher) -> None:
    for step in (4, 5, 1, 2, 10, 10):
        assert [part.indices for part in fetcher.batches(step)] == [[step, n] for n in range(step % 3)]


def test_closing_ends_them(fetcher: Fetcher) -> None:
    fetcher.batches(1)
    processes = [worker.process for worker in fetcher._workers]
    fetcher.close()
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize(
    ("what", "error", "told"),
    [
        (
            "kill",
            UserError,
            r"^a worker that reads the data ended \(SIGKILL\); if memory was short, lower `train",
        ),
        ("user", UserError, "^`data.path` is gone$"),
        ("fault", RuntimeError, "ZeroDivisionError: a fault"),
    ],
)
def test_what_ends_in_a_worker_is_told(
    what: str, error: type[Exception], told: str, make_trainer: Make
) -> None:
    trainer = make_trainer(train={"workers": 2}, toy={"worker": {what: 5}})
    with pytest.raises(error, match=told) as caught:
        trainer.run(resume=False)
    assert trainer.step == 5 or (what == "kill" and trainer.step < 5)  # its fetched batches are lost with it
    if error is UserError:
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_of_the_group_saves(number: int, make_trainer: Make, tmp_path: Path) -> None:
    """Ctrl-C, or a scheduler that signals every process of a job: the workers stay until the run has saved."""
    trainer = make_trainer(train={"workers": 2, "save_every": 50})
    one_step = trainer._one_step

    def signalled(fetcher: Fetcher) -> Any:
        if trainer.step == 5:
            for worker in fetcher._workers:
                assert worker.process.pid is not None
                os.kill(worker.process.pid, number)
            os.kill(os.getpid(), number)
        return one_step(fetcher)

    trainer._one_step = signalled
    with pytest.raises(KeyboardInterrupt):
        trainer.run(resume=False)
    assert (tmp_path / "run" / "checkpoint-6" / "manifest.json").exists()


PROGRAM = """
import os, sys, time
from ea_runtime.training.recipe import Batch
from ea_runtime.training.data.workers import Fetcher, FetchJob
def fetch(indices, seed, step):
    os.write(1, str(os.getpid()).encode() + bytes([10]))
    time.sleep({seconds})
    return Batch(indices)
fetcher = Fetcher(fetch, lambda step: [FetchJob([1], 0, step)], 2, 99)
for step in range(2):  # one from each worker, so both have started
    fetcher.batches(step)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("seconds", [0, 1])
def test_they_die_with_the_run(seconds: int) -> None:
    """A killed run cannot end its workers: idle and busy ones end on their own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(seconds=seconds)], capture_output=True, timeout=60
    )
    assert done.returncode == -9
    pids = {int(line) for line in done.stdout.split()}
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
