"""diffusers' context parallel over two gloo processes equals a pass in one process, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ea_dit.network import motion as motion_file
from ea_dit.network.context_parallel import first_frame
from ea_runtime.machine.light_imports import without_quantizers

Make = Callable[..., Any]
Kinds = dict[str, dict[str, Any]]


def error(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as raised:
        return str(raised)
    return ""


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


@torch.no_grad()
def compare(make_model: Make, kinds: Kinds) -> dict[Any, Any]:
    """(kind of motion module, frames) -> the difference; what is refused -> its message. For a process that ends."""
    with without_quantizers():  # diffusers imports them, for seconds, if they are here
        from diffusers import ContextParallelConfig

    torch.accelerator.device_count = lambda: 1  # diffusers takes the rank modulo this, and a CPU counts none
    found: dict[Any, Any] = {}
    for name, options in kinds.items():
        torch.manual_seed(0)
        model = make_model(**options).double()
        text, mask = torch.randn(4, 6, 24, dtype=torch.float64), torch.ones(4, 6, dtype=torch.long)
        mask[:2, 1:] = 0
        prepared = model.prepare(text, mask, [500])
        inputs = {n: torch.randn(2, 4, n, 4, 12, dtype=torch.float64) for n in (2, 4)}
        alone = {n: model(x, 500, prepared=prepared).sample for n, x in inputs.items()}

        def share(model: Any = model, **degrees: int) -> None:
            model.enable_parallelism(config=ContextParallelConfig(**degrees))

        if name == "tracks":
            found["ring"] = error(lambda share=share: share(ring_degree=2))
            model.spread()
            found["spread"] = error(lambda share=share: share(ulysses_degree=2))
            model.spread(False)
        share(ulysses_degree=2)
        for n, x in inputs.items():
            found[name, n] = difference(alone[n], model(x, 500, prepared=prepared).sample)
        if name == "tracks":

            def run(x: torch.Tensor, model: Any = model, prepared: Any = prepared, **more: Any) -> Any:
                return model(x, 500, prepared=prepared, **more).sample

            found["odd"] = error(lambda run=run: run(torch.randn(2, 4, 3, 4, 12).double()))
            cache = {"step_cache": lambda signal, x, blocks: blocks(x)}
            found["cache"] = error(lambda run=run, x=inputs[4], cache=cache: run(x, **cache))
            # the twin: every process believes to be the first
            motion_file.first_frame = lambda config, num_frames: 0
            found["twin"] = difference(alone[4], run(inputs[4]))
            motion_file.first_frame = first_frame
    return found


@pytest.mark.slow
def test_two_processes_equal_one(
    tmp_path: Path, in_gloo: Callable[..., None], make_model: Make, motion_kinds: Kinds
) -> None:
    in_gloo(lambda rank: torch.save(compare(make_model, motion_kinds), tmp_path / f"found-{rank}.pt"))
    for rank in range(2):
        found = torch.load(tmp_path / f"found-{rank}.pt", weights_only=True)
        for name in ("tracks", "grid", "global"):
            assert max(found[name, n] for n in (2, 4)) < 1e-12
        assert found["twin"] > 1e-6
        assert "3 do not fit 2 processes" in found["odd"]
        assert "step cache" in found["cache"]
        assert "`ulysses_degree` alone" in found["ring"]
        assert "spread(False)" in found["spread"]
