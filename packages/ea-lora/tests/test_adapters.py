"""The trained network: peft's layers where they belong, nothing else trainable, files that give the same again."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from ea_lora import find_targets, load_lora, write_lora
from ea_lora.adapters import adapt, base_parameters
from ea_lora.offload import offload_blocks
from ea_runtime.errors import UserError
from ea_runtime.machine.casting import cast


def fill(adapters: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in adapters.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3


def picture() -> Tensor:
    return torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def denoiser(small: Any) -> nn.Module:
    """A small network whose `proj_out` is called as peft wants it, by position."""
    network = small.make_pipe().denoiser
    norm, proj_out = network.norm, network.proj_out

    def forward(x: Tensor) -> Tensor:
        x = network.proj_in(network.conv_in(x))
        height = x.shape[2]
        x = network.mix(x.flatten(2)).transpose(1, 2)
        for block in network.blocks:
            x = block(x)
        return network.proj_out(norm(x)).transpose(1, 2).unflatten(2, (height, -1))

    assert proj_out is not None
    network.forward = forward
    return network


def test_every_target_and_nothing_else_is_adapted(denoiser: nn.Module) -> None:
    from peft.tuners.lora import LoraLayer

    targets = list(find_targets(denoiser))
    adapters = adapt(denoiser, rank=3, alpha=1.5)
    assert [path for path, m in denoiser.named_modules() if isinstance(m, LoraLayer)] == targets
    assert sorted(adapters.paths.values()) == sorted(targets)
    trained = {id(p) for p in denoiser.parameters() if p.requires_grad}
    assert trained == {id(p) for p in adapters.parameters()}
    assert not any(p.requires_grad for p in base_parameters(denoiser))
    layers = adapters.to_layers()
    assert {layer.rank for layer in layers} == {3}
    assert {layer.scale for layer in layers} == {0.5}


def test_untrained_adapters_change_nothing(denoiser: nn.Module, small: Any) -> None:
    with torch.no_grad():
        before = denoiser(picture())
        adapt(denoiser, rank=3)
        # not to the bit: adding 0 may change the memory layout, and that the kernels behind it
        assert small.relative_error(denoiser(picture()), before) < 1e-6


def test_patterns_choose(denoiser: nn.Module) -> None:
    adapters = adapt(denoiser, rank=2, include=["*to_q", "proj_*"], exclude=["blocks.1.*"])
    assert sorted(adapters.paths.values()) == ["blocks.0.to_q", "proj_in", "proj_out"]
    with pytest.raises(
        UserError, match=r"leave no layer of the denoiser to adapt; it has, for example, proj_in"
    ):
        adapt(denoiser, include=["*nothing*"])


def test_what_is_trained_is_what_a_file_does(denoiser: nn.Module, small: Any, tmp_path: Path) -> None:
    adapters = adapt(denoiser, rank=4, alpha=2.0)
    fill(adapters)
    trained = denoiser(picture())
    write_lora(tmp_path / "style.safetensors", adapters.to_layers())
    fresh = small.make_pipe().denoiser
    lora = load_lora(fresh, tmp_path / "style.safetensors", 1.0, parts=("denoiser",))
    assert len(lora.matched) == 9
    assert small.relative_error(fresh(picture()), trained) < 1e-6


def test_matrices_are_float32_on_a_16_bit_base(denoiser: nn.Module) -> None:
    adapters = adapt(denoiser.bfloat16(), rank=2)
    assert {p.dtype for p in adapters.parameters()} == {torch.float32}


class Stack(nn.Module):
    """Blocks with checkpointing as diffusers' models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)])
        self.run: Any = None

    def enable_gradient_checkpointing(self, run: Any) -> None:
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        for block in self.transformer_blocks:
            x = block(x) if self.run is None else self.run(block, x)
        return x


def test_offloaded_blocks_give_the_same_gradients() -> None:
    gradients = []
    for count in (0, 3):
        torch.manual_seed(0)
        network = Stack()
        adapters = adapt(network, rank=2)
        fill(adapters)
        if count:
            bytes_moved = offload_blocks(network, count, "cpu", contextlib.nullcontext)
            assert bytes_moved == 3 * (36 + 6) * 4
        network(torch.ones(5, 6)).square().sum().backward()
        gradients.append([p.grad for p in adapters.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    with pytest.raises(UserError, match="at most 4, the denoiser's blocks, got 5"):
        offload_blocks(Stack(), 5, "cpu", contextlib.nullcontext)
    with pytest.raises(UserError, match="needs a denoiser made of blocks"):
        offload_blocks(nn.Linear(2, 2), 1, "cpu", contextlib.nullcontext)


def test_offloaded_blocks_keep_float32_where_float16_overflows() -> None:
    class WideStack(Stack):
        _keep_in_fp32_modules: ClassVar[list[str]] = ["3"]

    network = WideStack()
    cast(network, "cpu", torch.float16)
    before = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    assert set(before.values()) == {torch.float16, torch.float32}
    offload_blocks(network, 3, "cpu", contextlib.nullcontext)
    assert {name: tensor.dtype for name, tensor in network.state_dict().items()} == before
