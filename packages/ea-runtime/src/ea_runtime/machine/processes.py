"""Several processes that share each batch: started here on one machine, or by torchrun or `accelerate launch`."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ea_runtime.errors import UserError

_STORE = "EA_STORE"
#: How long one process may wait for another, which may be encoding a whole set. A dead one is noticed at once.
_PATIENCE = timedelta(days=1)
#: Seconds that a process has to end after it is asked to.
_GRACE = 10.0


@contextmanager
def process_group(processes: int, argv: list[str], device: str = "cpu") -> Iterator[int]:
    """Yields this process's rank.

    If a launcher has set RANK and WORLD_SIZE (torchrun, `accelerate launch`), this process joins those, and
    `processes` is ignored. Otherwise the first process starts the others with the same arguments `argv` and waits for
    them; they meet in a file and talk over the loopback device. If this process fails, the others are ended; if one
    of them fails, UserError (RuntimeError for a fault of ours) reports its message in one line.

    device: "cpu" or "cuda..."; see `local_device`.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if _STORE in os.environ:
        _end_with_parent()
        store = Path(os.environ[_STORE])
        (store.parent / f"ready-{rank}").touch()
        with _joined(device, rank, size, store):
            yield rank
    elif size > 1:
        with _joined(device, rank, size, None):
            yield rank
    elif processes == 1:
        yield 0
    else:
        with _started(processes, argv, device):
            yield 0


@contextmanager
def _started(processes: int, argv: list[str], device: str) -> Iterator[None]:
    """The first process's part: starts the others, joins them, and ends them."""
    from accelerate.utils import patch_environment

    folder = Path(tempfile.mkdtemp(prefix="ea-train-"))
    others: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(1, processes):
            others.append(_start(folder, rank, processes, argv))
        _wait_until_ready(folder, others)
        with patch_environment(**_names(0, processes)):
            try:
                with _joined(device, 0, processes, folder / "store"):
                    yield
            except RuntimeError as error:
                if "gloo" in str(error).lower() or "nccl" in str(error).lower():  # it lost one of the others
                    _raise_fault(folder, others, _GRACE, error)
                raise
        for other in others:
            other.wait()
    finally:
        for other in others:
            _end(other)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _joined(device: str, rank: int, size: int, store: Path | None) -> Iterator[None]:
    """Within the block the processes can talk. store: the file where they meet; None: as the launcher says."""
    backend = "gloo"
    if device.startswith("cuda"):
        on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        if torch.cuda.device_count() >= on_machine:  # NCCL wants a device for each; gloo lets them share one
            backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_device(device))
    if store is None:
        dist.init_process_group(backend, timeout=_PATIENCE)
    else:
        if sys.platform == "linux":  # otherwise the address of the host's name is taken, if it has one
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        file = dist.FileStore(str(store), size)
        dist.init_process_group(backend, store=file, rank=rank, world_size=size, timeout=_PATIENCE)
    _keep(dist.group.WORLD)
    # whatever used accelerate before in this process found no group, and DDP would be left out for ever
    _forget_accelerate()
    try:
        yield
    except BaseException as error:
        _keep(error)
        raise
    finally:
        dist.destroy_process_group()  # processes that wait for this one wake up
        _forget_accelerate()


def _keep(thing: object) -> None:
    """Never frees a process group; nor an error, with what its traceback holds.

    Freeing a group holds the interpreter while it waits for a thread of the group, which may be waiting for the
    interpreter: then a run that was done, or had printed its error, never ended. DDP's reducer frees it last.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def local_device(device: str) -> str:
    """ "cuda" -> this process's own device among those of the machine; any other stays."""
    if device != "cuda":
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(1, torch.cuda.device_count())}"


def _forget_accelerate() -> None:
    """Resets what accelerate keeps for the process: it belongs to a group that is gone, or to none."""
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()


def _names(rank: int, size: int) -> dict[str, str]:
    """The variables that torchrun would set, for a group on one machine."""
    return {
        "RANK": f"{rank}",
        "WORLD_SIZE": f"{size}",
        "LOCAL_RANK": f"{rank}",
        "LOCAL_WORLD_SIZE": f"{size}",
    }


def _start(folder: Path, rank: int, processes: int, argv: list[str]) -> subprocess.Popen[bytes]:
    """One more process. Its standard input ends when this process does; its stderr goes to a file."""
    names = {_STORE: str(folder / "store"), **_names(rank, processes)}
    with (folder / f"said-{rank}").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "ea_runtime.cli.main", *argv],
            env={**os.environ, **names},
            stdin=subprocess.PIPE,
            stderr=said,
        )


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, even if killed.

    On Linux the kernel does it: a thread alone waits for the interpreter, whose main thread may be stuck in torch.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_end_after_input, daemon=True).start()


def _end_after_input() -> None:
    """Standard input ends with the parent, also where that was gone before the kernel was asked."""
    os.read(0, 1)
    os._exit(1)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _wait_until_ready(folder: Path, others: list[subprocess.Popen[bytes]]) -> None:
    """Returns when all processes run; without this a failed start would be waited for until _PATIENCE ends."""
    while not all((folder / f"ready-{rank}").exists() for rank in range(1, len(others) + 1)):
        _raise_fault(folder, others, 0.0, None)
        time.sleep(0.05)


def _raise_fault(
    folder: Path, others: list[subprocess.Popen[bytes]], seconds: float, cause: Exception | None
) -> None:
    """Raises the message of the first failed process; returns if none fails within `seconds`."""
    deadline = time.monotonic() + seconds
    while not any(other.poll() for other in others):
        if time.monotonic() >= deadline:
            return
        time.sleep(0.05)
    rank, code = next((rank, other.poll()) for rank, other in enumerate(others, 1) if other.poll())
    who = f"process {rank} of {len(others) + 1}"
    said = (folder / f"said-{rank}").read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.removeprefix("error: ") for line in reversed(said) if line.startswith("error: ")), "")
    if code is not None and code < 0:
        raise UserError(
            f"{who} was ended by {signal.Signals(-code).name}; if memory was short, lower `train.batch_size` "
            "or `train.processes`"
        ) from cause
    if code == 2 and last:
        raise UserError(f"{who}: {last}") from cause
    raise RuntimeError(f"{who} failed: {last or f'exit code {code}'}") from cause


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(value: Any) -> list[Any]:
    """Every process's value (anything that pickles), by rank."""
    size = world()[1]
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value)
    return values


def from_first(value: Any, first: int = 0) -> Any:
    """One process's value (anything that pickles) for all."""
    if world()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, first)
    return values[0]


def wait_for_all() -> None:
    """Returns when every process is here."""
    if world()[1] > 1:
        dist.barrier()
