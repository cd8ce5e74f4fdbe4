"""Computing in bf16 with weights in fp32."""

from __future__ import annotations

import torch
from torch import nn

from ea_runtime.training.precision import run_in, short_attention


class Network(nn.Module):
    """A layer, a tied one, and buffers of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.full((4,), 0.5))
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.shift.dtype == x.dtype
        assert self.first.weight.dtype == x.dtype
        return self.second(torch.tanh(self.first(x)) + self.shift)[:, self.order]


def test_gradients_reach_the_fp32_weights() -> None:
    torch.manual_seed(0)
    network, x = Network(), torch.randn(8, 4)
    exact = run_in(network, torch.float32, x)
    exact.square().mean().backward()
    wanted = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    coarse = run_in(network, torch.bfloat16, x.bfloat16())
    assert coarse.dtype == torch.bfloat16
    assert (coarse.float() - exact).abs().max() < 0.05
    coarse.float().square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - wanted[name]).abs().max() < 0.05


def test_short_attention_is_attention() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    plain = nn.functional.scaled_dot_product_attention(q, k, v)
    with short_attention("cpu"):
        short = nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(plain, short, atol=1e-5)
