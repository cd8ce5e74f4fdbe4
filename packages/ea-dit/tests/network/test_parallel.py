"""One pass over two gloo processes equals a pass in one process, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ea_dit.network.parallel import FrameSplit, shares

Make = Callable[..., Any]
Kinds = dict[str, dict[str, Any]]


@torch.no_grad()
def differences(make_model: Make, kinds: Kinds) -> dict[tuple[str, int], float]:
    """(kind of motion module, frames) -> the largest difference of a shared pass from one alone, relative."""
    found = {}
    through = dist.all_to_all_single
    for name, options in kinds.items():
        torch.manual_seed(0)
        model = make_model(**options).double()
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


def test_two_processes_equal_one(
    tmp_path: Path, in_gloo: Callable[..., None], make_model: Make, motion_kinds: Kinds
) -> None:
    in_gloo(lambda rank: torch.save(differences(make_model, motion_kinds), tmp_path / f"found-{rank}.pt"))
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
