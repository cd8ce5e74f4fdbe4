"""One pass over two gloo processes equals a pass in one process, in float64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from ea_dit.network.parallel import FrameSplit, shares

_CHILD = """
import sys
import torch
import torch.distributed as dist
from ea_dit import Transformer3DModel

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", store=dist.FileStore(folder + "/store", size), rank=rank, world_size=size)
motion = {"num_attention_heads": 4, "temporal_position_encoding_max_len": 16}
grid = {"motion_module_type": "VanillaGrid", "motion_module_kwargs": {**motion, "block_size": 2}}
V3 = {"basic_block_type": "global_motionmodule", "motion_module_kwargs": None, "motion_module_kwargs_even": motion,
      "motion_module_kwargs_odd": {**motion, "attention_block_types": ["Temporal_Self", "Global_Self"]}}
small = dict(num_attention_heads=4, attention_head_dim=8, num_layers=4, cross_attention_dim=32, caption_channels=24,
             sample_size=8, motion_module_kwargs=motion)
found = {}
with torch.no_grad():
    for name, options in (("tracks", {}), ("grid", grid), ("global", V3)):
        torch.manual_seed(0)
        model = Transformer3DModel(**{**small, **options}).double().eval()
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        for frames in (1, 3, 4):  # a picture cannot be shared out, three frames not evenly
            latents = torch.randn(2, 4, frames, 4, 12, dtype=torch.float64)
            text, mask = torch.randn(4, 6, 24, dtype=torch.float64), torch.ones(4, 6, dtype=torch.long)
            mask[:2, 1:] = 0
            prepared = model.prepare(text, mask, [500])
            alone = model(latents, 500, prepared=prepared).sample
            calls = []
            through = dist.all_to_all_single
            dist.all_to_all_single = lambda *a, **k: (calls.append(1), through(*a, **k))[1]
            model.spread()
            shared = model(latents, 500, prepared=prepared).sample
            model.spread(False)
            dist.all_to_all_single = through
            assert len(calls) == (0 if frames == 1 else 8), calls  # two in each of four motion modules
            found[name, frames] = float((alone - shared).abs().max() / alone.abs().max())
            assert all(b.attn_temporal.temporal_transformer.split is None for b in model.blocks)
torch.save(found, f"{folder}/found-{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _CHILD]
    children = [
        subprocess.Popen([*words, str(rank), "2", str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for child in children:
        _, said = child.communicate(timeout=300)
        assert child.returncode == 0, said
    for rank in range(2):
        found = torch.load(tmp_path / f"found-{rank}.pt")
        assert len(found) == 9
        assert max(found.values()) < 1e-12, found


def test_shares() -> None:
    assert shares(12, 2) == [6, 6]
    assert shares(7, 3) == [3, 2, 2]
    assert sum(shares(48, 7)) == 48


def test_what_cannot_be_shared_out(monkeypatch) -> None:
    monkeypatch.setattr(FrameSplit, "size", 4)
    split = FrameSplit()
    assert split.fits(4, 4)
    assert not split.fits(3, 100)
    assert not split.fits(100, 3)
