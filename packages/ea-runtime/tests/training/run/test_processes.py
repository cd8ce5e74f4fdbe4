"""Several processes that share each batch. Each test here starts a second process, which takes seconds."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from ea_runtime.cli.main import run as ea
from ea_runtime.errors import UserError
from ea_runtime.machine import processes
from ea_runtime.machine.processes import process_group, world

Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def train(toy_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """train(out, *settings): `ea train toy` in this process, 8 steps; the exit code and the output."""
    config = tmp_path / "toy.toml"
    config.write_text(
        '[run]\nrecipe="toy"\nout="x"\n[train]\nsteps=8\nbatch_size=5\nlr=0.01\nmuon_lr=0.01\nwarmup=2\n'
        "seed=7\nthreads=1\nsave_every=4\nkeep=9\n[data]\ndropout=false\n"
    )

    def start(out: str, *settings: str) -> tuple[int, list[str]]:
        words = ["--plugin", str(toy_file), "--no-plugins", "train", "toy", str(config)]
        words += [f"--set=run.out={tmp_path / out}", *(s if s[0] == "-" else f"--set={s}" for s in settings)]
        code = ea(words)
        assert world() == (0, 1)
        return code, capfd.readouterr().err.splitlines()

    return start


def figures(folder: Path, *names: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [[line[name] for name in names] for line in lines]


def test_two_compute_what_one_computes_and_stop_together(train: Run, tmp_path: Path) -> None:
    """Losses agree within 1e-5. SIGTERM to one process saves and stops both, and both resume."""
    assert train("one")[0] == 0
    PartialState()  # as of whoever used accelerate before, alone: the group counts
    words = ("two", "train.processes=2", "toy.sigterm=[2]", "toy.rank=1")
    code, said = train(*words)
    assert code == 130
    assert said[-2:] == ["step 4 of 8 is saved; --resume continues from there", "error: stopped"]
    code, said = train(*words, "--resume")
    assert code == 0
    assert said[-1] == f"done: {tmp_path / 'two' / 'final'}"
    one, two = (figures(tmp_path / name, "loss", "mean", "grad_norm", "samples") for name in ("one", "two"))
    assert len(one) == len(two) == 8
    for single, double in zip(one, two, strict=True):
        assert double == pytest.approx(single, abs=1e-5)
    weights = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(weights[0][k], weights[1][k], atol=1e-4) for k in weights[0] if k != "seen")


def test_what_fails_in_one_is_told_once(train: Run, tmp_path: Path) -> None:
    """A killed process, one that cannot save while the other waits, and a wrong start: no process hangs."""
    code, said = train("killed", "train.processes=2", "toy.sigkill=[2]", "toy.rank=1")
    assert code == 2
    assert said[-1].startswith("error: process 1 of 2 was ended by SIGKILL; if memory was short")
    code, said = train("full", "train.processes=2", "toy.full_disk=true")
    assert code == 2
    assert said[-1] == (
        f"error: '{tmp_path / 'full'}' cannot be written: No space left on device; saved is nothing yet: "
        "make room there and continue with --resume"
    )
    assert [line for line in said if line.startswith("error")] == said[-1:]
    assert [path.name for path in (tmp_path / "full").glob("*checkpoint*")] == ["checkpoint-0"]


def test_a_process_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def begin(words: list[str]) -> None:
        with process_group(2, words):
            pytest.fail("it began without the other")

    with pytest.raises(ValueError, match=r"^process 1 of 2: no command is called 'nothing'; there are:"):
        begin(["nothing"])
    monkeypatch.setattr(processes.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"^process 1 of 2 failed: exit code 1$"):
        begin([])


def test_the_others_end_with_the_first(train: Run, toy_file: Path, tmp_path: Path) -> None:
    """Even if it was killed and could not end the others."""
    words = [sys.executable, "-m", "ea_runtime.cli.main", "--plugin", str(toy_file), "train", "toy"]
    words += [str(tmp_path / "toy.toml"), f"--set=run.out={tmp_path / 'run'}", "--set=train.processes=2"]
    first = subprocess.Popen([*words, "--set=toy.sigkill=[3]"], stderr=subprocess.DEVNULL)
    others: set[int] = set()
    while first.poll() is None:
        others |= children_of(first.pid)
        time.sleep(0.05)
    assert first.returncode == -9
    assert others  # the second process; libraries may have started a system tool too
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in others):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
        [
            "accelerate.commands.launch",
            "--cpu",
            "--num_processes=2",
            "--num_machines=1",
            "--mixed_precision=no",
        ],
    ],
    ids=["torchrun", "accelerate"],
)
def test_a_launcher_starts_the_processes(
    launcher: list[str], train: Run, toy_file: Path, tmp_path: Path
) -> None:
    """`train.processes` is left at 1: the launcher's own count holds."""
    assert train("one")[0] == 0
    words = [sys.executable, "-m", *launcher, "-m", "ea_runtime.cli.main", "--plugin", str(toy_file)]
    words += ["--no-plugins", "train", "toy", str(tmp_path / "toy.toml"), f"--set=run.out={tmp_path / 'two'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
    if "accelerate" in launcher[0]:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=170, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done: ") == 1
    one, two = (figures(tmp_path / name, "loss", "mean", "grad_norm", "samples") for name in ("one", "two"))
    for single, double in zip(one, two, strict=True):
        assert double == pytest.approx(single, abs=1e-5)


def children_of(pid: int) -> set[int]:
    psutil: Any = pytest.importorskip("psutil")
    try:
        return {child.pid for child in psutil.Process(pid).children()}
    except psutil.NoSuchProcess:
        return set()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_a_failed_run_holds_is_never_freed(tmp_path: Path) -> None:
    """Freeing DDP's reducer can wait forever for a thread that wants the interpreter."""

    class Reducer:
        pass

    held: list[weakref.ref[Reducer]] = []

    def work() -> None:
        reducer = Reducer()
        held.append(weakref.ref(reducer))
        raise UserError("`train.lr` is wrong")

    def group() -> None:
        with processes._joined("cpu", 0, 1, tmp_path / "store"):
            work()

    with pytest.raises(UserError):
        group()
    gc.collect()
    assert held[0]() is not None
