"""Computing in bf16 with weights in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ea_runtime.training.update import precision
from ea_runtime.training.update.precision import has_bf16, resolve_dtype, run_in, short_attention


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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2": True, "avx512_f": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": False}, False),
    ],
)
def test_which_cpus_have_bf16(
    flags: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert has_bf16("cpu") is expected
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx512_core")  # oneDNN may not use all that the processor has
    assert not has_bf16("cpu")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert has_bf16("cpu") is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch 2.9
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: expected, raising=False)
    assert has_bf16("cpu") is expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_bf16("cpu")


def test_which_cards_have_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not has_bf16("cuda:0")
    assert not has_bf16("mps")
    assert asked == [False]


@pytest.mark.parametrize(
    ("asked", "recorded", "capable", "dtype", "said"),
    [
        ("fp32", None, False, "fp32", []),
        ("fp16", None, False, "fp16", []),
        ("bf16", None, True, "bf16", []),
        ("fp32", "bf16", True, "fp32", []),  # differences are reported where configs are compared
        ("auto", None, True, "bf16", ["`train.dtype` auto: bf16 on cpu"]),
        ("auto", None, False, "fp32", ["`train.dtype` auto: fp32 on cpu"]),
        ("auto", "fp32", True, "fp32", ["`train.dtype` auto: fp32 on cpu, as the run was made with"]),
        ("bf16", None, False, "bf16", ["many times slower than fp32; set it to auto"]),
        (
            "auto",
            "bf16",
            False,
            "bf16",
            [
                "`train.dtype` auto: bf16 on cpu, as the run was made with",
                "slower than fp32; a new run with auto takes fp32",
            ],
        ),
    ],
)
def test_the_type_of_a_run(
    asked: str,
    recorded: str | None,
    capable: bool,
    dtype: str,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: capable)
    lines: list[str] = []
    assert resolve_dtype(asked, "cpu", recorded, lines.append) == dtype
    assert len(lines) == len(said)
    for line, part in zip(lines, said, strict=True):
        assert part in line
        assert "\n" not in line
