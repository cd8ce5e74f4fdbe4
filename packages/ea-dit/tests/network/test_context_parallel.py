"""diffusers' context parallel over two gloo processes equals a pass in one process, in float64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

_CHILD = """
import sys
sys.modules["torchao"] = sys.modules["bitsandbytes"] = None  # diffusers imports them, for seconds, if they are here
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from ea_dit import Transformer3DModel
from ea_dit.network import motion as motion_file

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", store=dist.FileStore(folder + "/store", size), rank=rank, world_size=size)
torch.accelerator.device_count = lambda: 1  # diffusers takes the rank modulo this, and a CPU counts none
motion = {"num_attention_heads": 4, "temporal_position_encoding_max_len": 16}
grid = {"motion_module_type": "VanillaGrid", "motion_module_kwargs": {**motion, "block_size": 2}}
V3 = {"basic_block_type": "global_motionmodule", "motion_module_kwargs": None, "motion_module_kwargs_even": motion,
      "motion_module_kwargs_odd": {**motion, "attention_block_types": ["Temporal_Self", "Global_Self"]}}
small = dict(num_attention_heads=4, attention_head_dim=8, num_layers=4, cross_attention_dim=32, caption_channels=24,
             sample_size=8, motion_module_kwargs=motion)

def error(call):
    try:
        call()
    except ValueError as raised:
        return str(raised)
    return ""

found = {}
with torch.no_grad():
    for name, options in (("tracks", {}), ("grid", grid), ("global", V3)):
        torch.manual_seed(0)
        model = Transformer3DModel(**{**small, **options}).double().eval()
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        text, mask = torch.randn(4, 6, 24, dtype=torch.float64), torch.ones(4, 6, dtype=torch.long)
        mask[:2, 1:] = 0
        prepared = model.prepare(text, mask, [500])
        inputs = {n: torch.randn(2, 4, n, 4, 12, dtype=torch.float64) for n in (2, 4)}
        alone = {n: model(x, 500, prepared=prepared).sample for n, x in inputs.items()}
        if name == "tracks":
            found["ring"] = error(lambda: model.enable_parallelism(config=ContextParallelConfig(ring_degree=2)))
            model.spread()
            found["spread"] = error(lambda: model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2)))
            model.spread(False)
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
        for n, x in inputs.items():
            shared = model(x, 500, prepared=prepared).sample
            found[name, n] = float((alone[n] - shared).abs().max() / alone[n].abs().max())
        if name == "tracks":
            found["odd"] = error(lambda: model(torch.randn(2, 4, 3, 4, 12).double(), 500, prepared=prepared))
            cache = lambda signal, x, blocks: blocks(x)
            found["cache"] = error(lambda: model(inputs[4], 500, prepared=prepared, step_cache=cache))
            motion_file.first_frame = lambda config, num_frames: 0  # the twin: every process believes to be the first
            shared = model(inputs[4], 500, prepared=prepared).sample
            found["twin"] = float((alone[4] - shared).abs().max() / alone[4].abs().max())
            from ea_dit.network.context_parallel import first_frame
            motion_file.first_frame = first_frame
torch.save(found, f"{folder}/found-{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _CHILD]
    children = [
        subprocess.Popen([*words, str(rank), "2", str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for child in children:
        _, errors = child.communicate(timeout=170)
        assert child.returncode == 0, errors
    for rank in range(2):
        found = torch.load(tmp_path / f"found-{rank}.pt", weights_only=True)
        for name in ("tracks", "grid", "global"):
            assert max(found[name, n] for n in (2, 4)) < 1e-12
        assert found["twin"] > 1e-6
        assert "3 do not fit 2 processes" in found["odd"]
        assert "step cache" in found["cache"]
        assert "`ulysses_degree` alone" in found["ring"]
        assert "spread(False)" in found["spread"]
