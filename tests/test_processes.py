"""`torchrun ... ea generate`: two processes make the same video as one, and one of them writes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ea_runtime import VideoPipeline

REQUEST = {"prompt": "a red circle moves right", "seed": 3, "num_inference_steps": 3}
_CHILD = f"""
import sys
from ea_runtime.generation.spread import joined, rank, share_out
with joined("cpu") as device:
    import torch
    from ea_runtime import VideoPipeline
    torch.set_num_threads(1)
    pipe = VideoPipeline.from_pretrained("tiny", device=device)
    share_out(pipe)
    video = pipe(**{REQUEST})
    torch.save((video.latents, torch.from_numpy(video.frames)), f"{{sys.argv[1]}}/found-{{rank()}}.pt")
"""


def start(folder: Path, words: list[str], processes: int) -> None:
    """Runs a command in several processes, as torchrun starts them."""
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    threads = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    children = []
    for rank in range(processes):
        names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        env = {**os.environ, **store, **threads, **names}
        children.append(
            subprocess.Popen(
                words, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    for child in children:
        said = child.communicate(timeout=600)
        assert child.returncode == 0, said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names the loopback device as Linux does")
def test_two_processes_generate_what_one_does(tmp_path: Path):
    start(tmp_path, [sys.executable, "-c", _CHILD, str(tmp_path)], 2)
    alone = VideoPipeline.from_pretrained("tiny", device="cpu")(**REQUEST)
    latents, frames = alone.latents, torch.from_numpy(alone.frames)
    for rank in range(2):
        shared, shared_frames = torch.load(tmp_path / f"found-{rank}.pt")
        assert float((latents - shared).abs().max() / latents.abs().max()) < 1e-6
        assert (frames.int() - shared_frames.int()).abs().max() <= 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names the loopback device as Linux does")
def test_the_command_writes_once(tmp_path: Path):
    words = [
        sys.executable,
        "-m",
        "ea_runtime.cli.main",
        "generate",
        "a red circle",
        "--steps",
        "2",
        "-o",
        "out.png",
    ]
    start(tmp_path, words, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.png"]
    assert json.loads((tmp_path / "out.json").read_text())["device"]["processes"] == 2
