"""The blocks compile without graph breaks: no part of a rewrite makes the compiler fall back to Python."""

from __future__ import annotations

import os

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not os.environ.get("EA_FULL"), reason="loading the compiler is slow; EA_FULL=1 runs it"
)


@pytest.mark.slow
@pytest.mark.parametrize("rewrites", ["always", "rule"])
@torch.inference_mode()
def test_blocks_compile_without_a_break(make_vae, noise, rewrites):
    vae = make_vae(ch_mult=(1, 1, 1, 1))
    vae.set_rewrites(rewrites)
    z = noise(1, 4, 3, 2, 2)
    plain = vae.decode(z).sample
    vae.compile_repeated_blocks(backend="eager", fullgraph=True, dynamic=False)
    assert torch.allclose(vae.decode(z).sample, plain, atol=1e-5)
