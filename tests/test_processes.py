"""`torchrun ... ea generate`: two processes make the same video as one, and one of them writes it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ea_runtime import VideoPipeline
from ea_runtime.cli.main import run
from ea_runtime.generation.spread import joined, share_out

REQUEST = {"prompt": "a red circle moves right", "seed": 3, "num_inference_steps": 3}


def environment(rank: int, processes: int) -> dict[str, str]:
    """The variables that torchrun sets for a process."""
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    threads = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return store | threads | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names the loopback device as Linux does")
@pytest.mark.usefixtures("leave_torch_alone")
def test_two_processes_generate_what_one_does(tmp_path: Path, in_processes: Callable[..., None]):
    variables = [environment(rank, 2) for rank in range(2)]

    def work(rank: int) -> None:
        os.environ.update(variables[rank])
        torch.set_num_threads(1)
        with joined("cpu") as device:
            pipe = VideoPipeline.from_pretrained("tiny", device=device)
            share_out(pipe)
            video = pipe(**REQUEST)
        torch.save((video.latents, torch.from_numpy(video.frames)), tmp_path / f"found-{rank}.pt")

    in_processes(work)
    torch.set_num_threads(1)
    alone = VideoPipeline.from_pretrained("tiny", device="cpu")(**REQUEST)
    latents, frames = alone.latents, torch.from_numpy(alone.frames)
    for rank in range(2):
        shared, shared_frames = torch.load(tmp_path / f"found-{rank}.pt")
        assert float((latents - shared).abs().max() / latents.abs().max()) < 1e-6
        assert (frames.int() - shared_frames.int()).abs().max() <= 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names the loopback device as Linux does")
def test_the_command_writes_once(
    tmp_path: Path, in_processes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    variables = [environment(rank, 2) for rank in range(2)]

    def work(rank: int) -> None:
        os.environ.update(variables[rank])
        assert run(["generate", "a red circle", "--steps", "2", "-o", "out.png"]) == 0

    in_processes(work)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.png"]
    assert json.loads((tmp_path / "out.json").read_text())["device"]["processes"] == 2
