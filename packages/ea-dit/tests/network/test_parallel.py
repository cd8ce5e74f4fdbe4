"""One pass over two gloo processes equals a pass in one process, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ea_dit import Transformer3DModel
from ea_dit.network.parallel import FrameSplit, shares

MOTION = {"num_attention_heads": 4, "temporal_position_encoding_max_len": 16}
GRID = {"motion_module_type": "VanillaGrid", "motion_module_kwargs": {**MOTION, "block_size": 2}}
V3 = {
    "basic_block_type": "global_motionmodule",
    "motion_module_kwargs": None,
    "motion_module_kwargs_even": MOTION,
    "motion_module_kwargs_odd": {**MOTION, "attention_block_types": ["Temporal_Self", "Global_Self"]},
}
SMALL: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_layers": 4,
    "cross_attention_dim": 32,
    "caption_channels": 24,
    "sample_size": 8,
    "motion_module_kwargs": MOTION,
}


@torch.no_grad()
def differences() -> dict[tuple[str, int], float]:
    """(kind of motion module, frames) -> the largest difference of a shared pass from one alone, relative."""
    found = {}
    through = dist.all_to_all_single
    for name, options in (("tracks", {}), ("grid", GRID), ("global", V3)):
        torch.manual_seed(0)
        model = Transformer3DModel(**{**SMALL, **options}).double().eval()
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        for frames in (1, 3, 4):  # a picture cannot be shared out, three frames not evenly
            latents = torch.randn(2, 4, frames, 4, 12, dtype=torch.float64)
            text, mask = torch.randn(4, 6, 24, dtype=torch.float64), torch.ones(4, 6, dtype=torch.long)
            mask[:2, 1:] = 0
            prepared = model.prepare(text, mask, [500])
            alone = model(latents, 500, prepared=prepared).sample
            calls: list[int] = []

            def counted(*given: Any, calls: list[int] = calls, **named: Any) -> Any:
                calls.append(1)
                return through(*given, **named)

            dist.all_to_all_single = counted
            model.spread()
            shared = model(latents, 500, prepared=prepared).sample
            model.spread(False)
            dist.all_to_all_single = through
            assert len(calls) == (0 if frames == 1 else 8), calls  # two in each of four motion modules
            found[name, frames] = float((alone - shared).abs().max() / alone.abs().max())
            assert all(b.attn_temporal.temporal_transformer.split is None for b in model.blocks)
    return found


def test_two_processes_equal_one(tmp_path: Path, in_processes: Callable[..., None]) -> None:
    def work(rank: int) -> None:
        store = dist.FileStore(str(tmp_path / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        torch.save(differences(), tmp_path / f"found-{rank}.pt")
        dist.destroy_process_group()

    in_processes(work)
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
