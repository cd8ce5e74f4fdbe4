"""The linear layer gives torch's values by either product, and keeps torch's own where oneDNN could not read."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ea_dit.network import linear
from ea_dit.network.linear import Linear


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def wide():
    layer = Linear(1024, 1024)
    with torch.no_grad():
        layer.weight.copy_(noise(1024, 1024) / 32)
        layer.bias.copy_(noise(1024, seed=1))
    return layer


@pytest.fixture
def calls(monkeypatch):
    """Shapes that oneDNN was asked for, on a machine where it is the faster one."""
    seen, real = [], torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(linear, "has_faster_onednn", torch.backends.mkldnn.is_available)
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda x, *a: seen.append(tuple(x.shape)) or real(x, *a)
    )
    return seen


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@torch.no_grad()
def test_both_products_agree(wide, calls):
    x = noise(2, 16, 1024, seed=2)
    found, wanted = wide(x), F.linear(x, wide.weight, wide.bias)
    assert calls == [(2, 16, 1024)]
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(wide(x + 1e-3), wanted, atol=1e-5)
    assert torch.equal(wide(x), found)


def test_gradients_few_rows_and_other_formats_keep_torchs_own(wide, calls):
    wide(noise(16, 1024)).sum().backward()
    assert wide.weight.grad is not None
    with torch.no_grad():
        wide(noise(8, 1024))
        Linear(64, 64)(noise(64, 64))
        wide.bfloat16()(noise(16, 1024).bfloat16())
        wide.to("meta")(noise(16, 1024).to("meta"))
    assert calls == []
