from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ea_data.children.supervisor import Failure, Supervisor, WorkerStartError
from ea_runtime.errors import UserError

TARGETS = """
import os, signal, time
import numpy as np
from ea_data.children.supervisor import TransientError, note

def echo(value): return value
def zeros(size): return np.zeros(size, np.uint8)
def napping(seconds):
    time.sleep(seconds)
    return seconds
def environment(name): return os.environ.get(name)
def bad(what):
    note(f"about to {what}")
    if what == "leave": os._exit(3)
    if what == "hang": time.sleep(60)
    if what == "segv": os.kill(os.getpid(), signal.SIGSEGV)
    if what == "killed": os.kill(os.getpid(), signal.SIGKILL)
    if what == "slowly eat":
        kept = []
        while True: kept.append(bytearray(b"x" * (8 << 20)))
    if what == "eat at once": return len(bytes(64 << 30))
    if what == "raise": raise ValueError("two  lines\\nof it")
    if what == "disk": raise OSError(5, "Input/output error")
    if what == "server": raise TransientError("the server is away")
    return what
class Prepared:
    def prepare(self): self.word = "ready"
    def __call__(self, task): return self.word, os.getpid()
class Unready:
    def prepare(self): raise RuntimeError("no weights")
    def __call__(self, task): return task
class Once:
    '''Ends its process the first time it sees the task.'''
    def __call__(self, path):
        if not os.path.exists(path):
            open(path, "w").close()
            os._exit(1)
        return "second time"
"""


@pytest.fixture(autouse=True)
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "supervise_targets.py").write_text(TARGETS)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_values_come_in_the_order_of_the_tasks():
    with Supervisor("supervise_targets:napping", workers=2) as pool:
        assert list(pool.map([0.05, 0.0, 0.02, 0.0])) == [0.05, 0.0, 0.02, 0.0]


def test_as_completed_names_the_task():
    with Supervisor("supervise_targets:echo", workers=2) as pool:
        assert sorted(pool.as_completed(range(20))) == [(number, number) for number in range(20)]


def test_tasks_are_read_as_they_are_wanted():
    read = []

    def tasks():
        for number in range(1000):
            read.append(number)
            yield number

    with Supervisor("supervise_targets:echo") as pool:
        results = pool.map(tasks())
        for _ in range(3):
            next(results)
        results.close()
        assert len(read) < 20
        assert pool.call("still there") == "still there"


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("leave", "crash", "exit code 3"),
        ("segv", "crash", "SIGSEGV"),
        ("killed", "crash", "SIGKILL"),
        ("hang", "timeout", "longer than 0.5 s"),
        ("slowly eat", "memory", "more than 200 MB"),
        ("eat at once", "memory", "more than 200 MB"),
        ("raise", "error", "two lines of it"),
    ],
)
def test_a_bad_task_costs_itself_alone(what: str, kind: str, words: str):
    timeout = 0.5 if what == "hang" else 60
    with Supervisor("supervise_targets:bad", timeout=timeout, memory_mb=200) as pool:
        results = list(pool.map(["a", what, "b"]))
    assert results[0] == "a"
    assert results[2] == "b"
    failure = results[1]
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.is_transient) == (kind, False)
    assert words in failure.reason
    assert failure.during == f"about to {what}"


def test_faults_of_the_system_are_transient():
    with Supervisor("supervise_targets:bad") as pool:
        assert [failure.is_transient for failure in pool.map(["disk", "server", "raise"])] == [
            True,
            True,
            False,
        ]


def test_two_strikes_one_is_forgiven(tmp_path: Path):
    with Supervisor("supervise_targets:Once") as pool:
        assert pool.call(str(tmp_path / "seen")) == "second time"
        assert pool.quarantined == 0


def test_arrays_come_whole():
    with Supervisor("supervise_targets:echo") as pool:
        frames = np.random.default_rng(0).integers(0, 255, (7, 301, 403, 3), np.uint8)
        back = pool.call({"frames": frames, "empty": np.zeros((0, 3))})
    assert np.array_equal(back["frames"], frames)
    assert back["frames"].flags.writeable
    assert back["empty"].shape == (0, 3)


def test_prepare_runs_once_a_child():
    with Supervisor("supervise_targets:Prepared") as pool:
        assert len(set(pool.map(range(5)))) == 1


@pytest.mark.parametrize("target", ["supervise_targets:Unready", "supervise_targets:absent", "absent:f"])
def test_a_target_that_cannot_start_is_reported(target: str):
    with Supervisor(target) as pool, pytest.raises(WorkerStartError, match=r"no weights|absent"):
        pool.call(1)


def test_environment_and_settings(monkeypatch: pytest.MonkeyPatch):
    with Supervisor("supervise_targets:environment", env={"OMP_NUM_THREADS": "3"}) as pool:
        assert pool.call("OMP_NUM_THREADS") == "3"
    with pytest.raises(ValueError, match="workers"):
        Supervisor("supervise_targets:echo", workers=0)


def test_children_die_with_a_killed_parent(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from ea_data.children.supervisor import Supervisor\n"
        "pool = Supervisor('supervise_targets:napping', workers=2, timeout=60)\n"
        "import threading, time\n"
        "threading.Thread(target=lambda: list(pool.map([50, 50])), daemon=True).start()\n"
        "while len(pool._children) < 2 or any(c.job is None for c in pool._children): time.sleep(0.01)\n"
        "print(*(c.process.pid for c in pool._children), flush=True)\n"
        "time.sleep(50)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(word) for word in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(_lives, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_lives, children))


def test_a_child_of_a_thread_outlives_the_thread():
    import threading

    with Supervisor("supervise_targets:echo") as pool:
        first: list[int] = []
        thread = threading.Thread(target=lambda: first.append(pool.call(1)))
        thread.start()
        thread.join()
        child = pool._children[0].process.pid
        time.sleep(0.1)
        assert first == [1]
        assert pool.call(2) == 2
        assert pool._children[0].process.pid == child


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return not Path("/proc/self").exists()
    return state != "Z"


def test_windows_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="supervised processes need Linux or macOS"):
        Supervisor("supervise_targets:echo")
