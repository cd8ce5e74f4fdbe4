"""Chunks over two gloo processes: each gets the result of a single process, bit-exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ea_vae import AutoencoderKLMagvit
from ea_vae.network.streaming import VideoCoder

SMALL = {"ch": 4, "ch_mult": (1, 1, 2, 2), "layers_per_block": 1, "norm_num_groups": 2}
SLICED = {"slice_compression_vae": True, "mini_batch_encoder": 8, "mini_batch_decoder": 2}


def decode_alone_and_together() -> list[tuple[bool, int, tuple[int, ...]]]:
    """Of each VAE, plain and smoothed: if both results are equal, the chunks decoded here, and the shape."""
    found = []
    for options in ({}, SLICED):
        torch.manual_seed(0)
        vae = AutoencoderKLMagvit(**SMALL, **options).eval()
        latents = torch.randn(1, 4, 15, 2, 2)
        count, decode = [0], vae.decode_piece

        def counted(*args, count=count, decode=decode):
            count[0] += 1
            return decode(*args)

        for smooth in (False, True):
            settings = [{"smooth": smooth, "generator": torch.Generator().manual_seed(5)} for _ in range(2)]
            alone = vae.decode_video(latents, **settings[0])
            vae.spread()
            vae.decode_piece = counted
            shared = vae.decode_video(latents, **settings[1])
            vae.decode_piece = decode
            vae.spread(False)
            found.append((torch.equal(alone, shared), count[0], tuple(shared.shape)))
            count[0] = 0
    return found


def test_two_processes_equal_one(tmp_path: Path, in_gloo: Callable[..., None]):
    def work(rank: int) -> None:
        torch.set_num_threads(1)
        torch.save(decode_alone_and_together(), tmp_path / f"found-{rank}.pt")

    in_gloo(work)
    found = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2)]
    for ours, others in zip(*found, strict=True):
        assert ours[0]
        assert others[0]
        assert ours[2] == others[2]
        assert ours[1] > 0
        assert others[1] > 0
        assert abs(ours[1] - others[1]) <= 2  # each process does a share of the work
    # 15 latents; with smoothing
    assert [one[1] + two[1] for one, two in zip(*found, strict=True)][:2] == [5, 9]


def test_jobs_here_run_one_by_one():
    ran = []

    def job(number):
        return lambda: ran.append(number) or torch.tensor(number)

    results = VideoCoder().run_jobs(job(number) for number in range(3))
    assert int(next(results)) == 0
    assert ran == [0]
    assert [int(result) for result in results] == [1, 2]
