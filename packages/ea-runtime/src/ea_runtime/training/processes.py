"""Several processes on one machine that share each batch: start them, and average what they computed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ea_runtime.errors import UserError

_STORE, _RANK, _WORLD = "EA_STORE", "EA_RANK", "EA_WORLD"
#: How long one process may wait for another, which may be coding a whole set. A dead one is noticed at once.
_PATIENCE = timedelta(days=1)
#: Seconds that a process is given to end after it was asked to.
_GRACE = 10.0


@contextmanager
def process_group(processes: int, argv: list[str]) -> Iterator[int]:
    """Yields this process's rank. The first process starts the others with the same words and waits for them.

    They meet in a file and talk over the loopback device. If this process fails, the others are ended; if one
    of them fails, UserError (RuntimeError for a fault of ours) tells what it said: only one line is shown.
    """
    if processes == 1:
        yield 0
        return
    if _RANK in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        store, rank = Path(os.environ[_STORE]), int(os.environ[_RANK])
        (store.parent / f"ready-{rank}").touch()
        _join(store, rank, int(os.environ[_WORLD]))
        try:
            yield rank
        finally:
            dist.destroy_process_group()
        return
    folder = Path(tempfile.mkdtemp(prefix="ea-train-"))
    others: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(1, processes):
            others.append(_start(folder, rank, processes, argv))
        _wait_until_ready(folder, others)
        _join(folder / "store", 0, processes)
        try:
            yield 0
        except RuntimeError as error:
            if "gloo" in str(error):  # it lost one of the others
                _raise_fault(folder, others, _GRACE, error)
            raise
        dist.destroy_process_group()
        for other in others:
            other.wait()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()  # those who wait for this process wake up
        for other in others:
            _end(other)
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, rank: int, processes: int, argv: list[str]) -> subprocess.Popen[bytes]:
    """One more process. Its standard input ends when this process does; what it says goes to a file."""
    names = {_STORE: str(folder / "store"), _RANK: str(rank), _WORLD: str(processes)}
    with (folder / f"said-{rank}").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "ea_runtime.cli.main", *argv],
            env={**os.environ, **names}, stdin=subprocess.PIPE, stderr=said,
        )  # fmt: skip


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, also where that was killed."""
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
    """Returns when all processes run; without this a wrong start would be waited for until patience ends."""
    while not all((folder / f"ready-{rank}").exists() for rank in range(1, len(others) + 1)):
        _raise_fault(folder, others, 0.0, None)
        time.sleep(0.05)


def _raise_fault(
    folder: Path, others: list[subprocess.Popen[bytes]], seconds: float, cause: Exception | None
) -> None:
    """Raises what the first failed process said; returns where none fails within `seconds`."""
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


@torch.no_grad()
def sum_over_processes(tensors: list[Tensor], extras: list[float]) -> list[float]:
    """Replaces each tensor by its sum over all processes, in place, and returns the sums of `extras`."""
    if world()[1] == 1:
        return extras
    flat = torch.cat(
        [t.flatten() for t in tensors] + [torch.tensor(extras, dtype=torch.float32, device=tensors[0].device)]
    )
    dist.all_reduce(flat)
    place = 0
    for tensor in tensors:
        tensor.copy_(flat[place : place + tensor.numel()].view_as(tensor))
        place += tensor.numel()
    return flat[place:].tolist()


@torch.no_grad()
def share_weights(modules: Iterable[nn.Module]) -> None:
    """Gives all processes the first one's weights and buffers, so that all start alike."""
    if world()[1] == 1:
        return
    for module in modules:
        for tensor in module.state_dict().values():
            shared = tensor.contiguous()
            dist.broadcast(shared, 0)
            tensor.copy_(shared)


def wait_for_all() -> None:
    """Returns when every process is here."""
    if world()[1] > 1:
        dist.barrier()


def _join(store: Path, rank: int, size: int) -> None:
    if sys.platform == "linux":  # otherwise the address of the host's name is taken, if it has one
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    file = dist.FileStore(str(store), size)
    dist.init_process_group("gloo", store=file, rank=rank, world_size=size, timeout=_PATIENCE)
