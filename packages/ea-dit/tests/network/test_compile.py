"""The blocks compile without graph breaks, with texts as sampling prepares them."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not os.environ.get("EA_FULL"), reason="loading the compiler is slow; EA_FULL=1 runs it"
)


@pytest.mark.slow
@torch.inference_mode()
def test_blocks_compile_without_a_break(make_model: Any) -> None:
    model = make_model()
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0]])
    prepared = model.prepare(torch.randn(2, 4, 24), mask, [5.0])
    latents = torch.randn(1, 4, 3, 4, 4)
    plain = model(latents, 5.0, prepared=prepared).sample
    model.compile_repeated_blocks(backend="eager", fullgraph=True, dynamic=False)
    assert torch.allclose(model(latents, 5.0, prepared=prepared).sample, plain, atol=1e-6)
