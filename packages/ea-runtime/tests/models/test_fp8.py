"""Weights stored as 8-bit floats: fewer bytes, nearly the same numbers, what is to stay wide stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ea_runtime.errors import UserError
from ea_runtime.machine.computing import compute_dtype
from ea_runtime.models.fp8 import is_in_fp8, store_in_fp8
from ea_runtime.text.t5 import T5Encoder


class Small(nn.Module):
    """A network with a norm, and with a layer that it wants to keep wide."""

    _skip_layerwise_casting_patterns = ("last",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_linears_are_stored_narrow_and_computed_wide(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Small().to(dtype)
    x = torch.randn(4, 64, dtype=dtype)
    wanted, size = network(x), network.first.weight.nbytes + network.first.bias.nbytes
    assert store_in_fp8(network) == size - 64 * 65
    assert {name: p.dtype for name, p in network.named_parameters()} == {
        name: torch.float8_e4m3fn if name.startswith("first") else dtype
        for name, _ in Small().named_parameters()
    }
    found = network(x)
    assert found.dtype == compute_dtype(network) == dtype
    # the twin: fp8 that did nothing would give the same bits
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.05
    assert is_in_fp8(network)
    assert store_in_fp8(network) == 0


@torch.no_grad()
def test_t5_computes_in_its_own_format() -> None:
    from transformers import T5Config

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    network = T5Encoder(config)
    for parameter in network.parameters():
        parameter.normal_(std=0.2)
    ids = torch.arange(12)[None]
    wanted = network(ids).last_hidden_state
    store_in_fp8(network, "text encoder")
    assert network.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float8_e4m3fn
    found = network(ids).last_hidden_state
    assert found.dtype == network.dtype == torch.float32
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.2


def test_what_fp8_cannot_hold_is_refused() -> None:
    with pytest.raises(UserError, match=r"the vae is a int"):
        store_in_fp8(3, "vae")
    with pytest.raises(UserError, match=r"the network has none"):
        store_in_fp8(nn.LayerNorm(4))
    network = Small()
    network.first.weight.data[3, 5] = 500
    with pytest.raises(UserError, match=r"first has weights above 448 or NaN"):
        store_in_fp8(network, "denoiser")
    assert not is_in_fp8(network)
