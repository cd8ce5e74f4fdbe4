"""Settings and fixtures for the tests of every package."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch is imported: parallel processes that each use all cores slow one another down
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

from ea_runtime.plugins import host as plugins


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process more than there are cores: a fifth of the time tests wait for a server, a child or a timeout."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Lets each worker begin to read the tests at another place: in a new clone pytest rewrites the assertions of every
    file, which takes seconds, and what one worker has written the others need not."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    if worker != "gw0" and config.args == config.getini("testpaths"):
        places = [str(one) for path in config.args for one in sorted(Path(path).glob("*/tests")) or [path]]
        first = int(worker[2:]) * len(places) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        config.args[:] = places[first:] + places[:first]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Takes what collecting imports (a million objects, none of them garbage) out of the garbage collector's sight."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first: after gradients on the meta device, a process cannot compute any in its forks.

    Workers, which read the tests in different orders, have one: the folder `tests` first, whose tests take longest.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        top = Path(__file__).parent / "tests"
        items.sort(key=lambda item: (not item.path.is_relative_to(top), item.path.parts))
    items.sort(key=lambda item: item.get_closest_marker("forks") is None)


@pytest.fixture(scope="session", autouse=True)
def _a_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty cache of facts about the machine, separate from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Leaves out os.fsync, which only a power cut would miss, and which makes each saved run wait; EA_FULL=1 waits."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("EA_FULL") != "1":
            patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True)
def _the_same_host_afterwards() -> Iterator[None]:
    """Restores the host after a test that runs a command or makes a host with other plugins."""
    before = plugins._host
    yield
    plugins._host = before


@pytest.fixture(autouse=True)
def _the_usual_scheduling_afterwards() -> Iterator[None]:
    """Takes real-time scheduling away again, which SVT-AV1 gives the process that encodes with it as root.

    Every child would inherit it: two of a browser's processes that wait for a third, busily, then stop the machine.
    """
    yield
    if not hasattr(os, "sched_getscheduler") or os.sched_getscheduler(0) == os.SCHED_OTHER:
        return
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture
def leave_torch_alone() -> Iterator[None]:
    """Restores the process state that a training run changes: threads, the global generator, the host."""
    import torch

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    plugins.set_host(None)


@pytest.fixture
def in_processes() -> Callable[..., None]:
    """in_processes(work, size=2): calls work(rank) in forks of this process, which has imported what they need; fails
    with what the first of them raises."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork a process")

    def call(work: Callable[[int], object], size: int = 2) -> None:
        children = []
        for rank in range(size):
            reads, writes = os.pipe()
            pid = os.fork()
            if pid == 0:
                said = ""
                try:
                    work(rank)
                except BaseException:
                    said = traceback.format_exc()
                os.write(writes, said.encode()[-4000:])
                os._exit(0 if not said else 1)
            os.close(writes)
            children.append((pid, reads))
        ended = []
        for pid, reads in children:
            with os.fdopen(reads) as pipe:
                said = pipe.read()
            ended.append((os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said))
        for code, said in ended:
            assert code == 0, said or f"a process ended with {code}"

    return call


@pytest.fixture
def in_gloo(tmp_path: Path, in_processes: Callable[..., None]) -> Callable[..., None]:
    """in_gloo(work): calls work(rank) in two processes that have joined a gloo group."""

    def call(work: Callable[[int], object]) -> None:
        import torch.distributed as dist

        def joined(rank: int) -> None:
            store = dist.FileStore(str(tmp_path / "store"), 2)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
            work(rank)
            dist.destroy_process_group()

        in_processes(joined)

    return call


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of golden tensors, `shared/reference` next to the checkout; the test is skipped if it is missing."""
    folder = Path(__file__).resolve().parent.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip(f"golden tensors are not on this machine: {folder} is missing")
    return folder
