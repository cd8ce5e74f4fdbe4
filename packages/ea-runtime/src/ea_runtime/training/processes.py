"""Several processes on one machine that share each batch: start them, and average what they computed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

_STORE, _RANK, _WORLD = "EA_STORE", "EA_RANK", "EA_WORLD"


@contextmanager
def process_group(processes: int, argv: list[str]) -> Iterator[int]:
    """Yields this process's rank. The first process starts the others with the same words and waits for them.

    They meet in a file, so that no port is opened. If this process fails, the others are ended.
    """
    if processes == 1:
        yield 0
        return
    if _RANK in os.environ:
        _join(Path(os.environ[_STORE]), int(os.environ[_RANK]), int(os.environ[_WORLD]))
        try:
            yield int(os.environ[_RANK])
        finally:
            dist.destroy_process_group()
        return
    folder = Path(tempfile.mkdtemp(prefix="ea-train-"))
    children: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(1, processes):
            environment = {
                **os.environ,
                _STORE: str(folder / "store"),
                _RANK: str(rank),
                _WORLD: str(processes),
            }
            children.append(
                subprocess.Popen([sys.executable, "-m", "ea_runtime.cli.main", *argv], env=environment)
            )
        _join(folder / "store", 0, processes)
        yield 0
        dist.destroy_process_group()
        for child in children:
            child.wait()
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
                child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@torch.no_grad()
def sum_over_processes(tensors: list[Tensor], extras: list[float]) -> list[float]:
    """Replaces each tensor by its sum over all processes, in place, and returns the sums of `extras`."""
    if world()[1] == 1:
        return extras
    flat = torch.cat([t.flatten() for t in tensors] + [torch.tensor(extras, dtype=torch.float32)])
    dist.all_reduce(flat)
    place = 0
    for tensor in tensors:
        tensor.copy_(flat[place : place + tensor.numel()].view_as(tensor))
        place += tensor.numel()
    return flat[place:].tolist()


def wait_for_all() -> None:
    """Returns when every process is here."""
    if world()[1] > 1:
        dist.barrier()


def _join(store: Path, rank: int, size: int) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(store), size), rank=rank, world_size=size)
