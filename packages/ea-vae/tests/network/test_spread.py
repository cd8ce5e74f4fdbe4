"""Chunks over two gloo processes: each gets the result of a single process, bit-exact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from ea_vae.network.streaming import VideoCoder

_CHILD = """
import sys
import torch
import torch.distributed as dist
from ea_vae import AutoencoderKLMagvit

torch.set_num_threads(1)
rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", store=dist.FileStore(folder + "/store", size), rank=rank, world_size=size)
small = dict(ch=4, ch_mult=(1, 1, 2, 2), layers_per_block=1, norm_num_groups=2)
sliced = dict(slice_compression_vae=True, mini_batch_encoder=8, mini_batch_decoder=2)
found = []
for options in ({}, sliced):
    torch.manual_seed(0)
    vae = AutoencoderKLMagvit(**small, **options).eval()
    latents = torch.randn(1, 4, 15, 2, 2)
    count, decode = [0], vae.decode_piece
    def counted(*args):
        count[0] += 1
        return decode(*args)
    for smooth in (False, True):
        settings = lambda: dict(smooth=smooth, generator=torch.Generator().manual_seed(5))
        alone = vae.decode_video(latents, **settings())
        vae.spread()
        vae.decode_piece = counted
        shared = vae.decode_video(latents, **settings())
        vae.decode_piece = decode
        vae.spread(False)
        found.append((torch.equal(alone, shared), count[0], tuple(shared.shape)))
        count[0] = 0
torch.save(found, f"{folder}/found-{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path):
    words = [sys.executable, "-c", _CHILD]
    children = [
        subprocess.Popen([*words, str(rank), "2", str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for child in children:
        _, said = child.communicate(timeout=300)
        assert child.returncode == 0, said
    found = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2)]
    for ours, others in zip(*found, strict=True):
        assert ours[0]
        assert others[0]
        assert ours[2] == others[2]
        assert ours[1] > 0
        assert others[1] > 0
        assert abs(ours[1] - others[1]) <= 2  # each process does a share of the work
    assert [one[1] + two[1] for one, two in zip(*found, strict=True)][:2] == [
        5,
        9,
    ]  # 15 latents; with smoothing


def test_jobs_here_run_one_by_one():
    ran = []

    def job(number):
        return lambda: ran.append(number) or torch.tensor(number)

    results = VideoCoder().run_jobs(job(number) for number in range(3))
    assert int(next(results)) == 0
    assert ran == [0]
    assert [int(result) for result in results] == [1, 2]
