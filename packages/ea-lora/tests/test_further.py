"""Training that starts from a LoRA file: the network with fresh adapters does what it does with the file on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from ea_lora import load_lora, read_lora
from ea_lora.adapters import Adapters, adapt
from ea_lora.further import start_from
from ea_lora.io import write_lora
from ea_lora.keys import Layout
from ea_runtime.errors import UserError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(8, 8)
        self.to_out = nn.ModuleList([nn.Linear(8, 8)])
        self.conv = nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv((self.to_out[0](self.to_q(x).tanh()))[:, :, None])[:, :, 0]


class Network(nn.Module):
    """Float32 on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def adapted(**options: Any) -> tuple[Network, Adapters]:
    net = network()
    sizes: dict[str, Any] = {"rank": 4, "alpha": 2.0, **options}
    return net, adapt(net, **sizes)


def trained(path: Path, layout: str = "kohya", **options: Any) -> Path:
    """A LoRA file whose matrices are all drawn."""
    _, adapters = adapted(**options)
    torch.manual_seed(5)
    for parameter in adapters.parameters():
        parameter.data.normal_(std=0.3)
    write_lora(path, adapters.to_layers(), {}, cast(Layout, layout))
    return path


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_the_start_is_the_file(layout: str, tmp_path: Path) -> None:
    file = trained(tmp_path / ("a" if layout == "peft" else "a.safetensors"), layout)
    net, adapters = adapted()
    lines = start_from(str(file), [adapters], "tiny")
    assert lines[0].startswith("start: 6 layers of ")
    wanted, x = network(), torch.randn(3, 8)
    load_lora(wanted, file, 1.0)
    assert torch.allclose(net(x), wanted(x), atol=1e-6)
    # bit-exact: saved again without training, the matrices are those of the file
    write_lora(tmp_path / "again.safetensors", adapters.to_layers(), {}, "kohya")
    one = {layer.path.replace(".", "_"): layer for layer in read_lora(file).layers}
    for layer in read_lora(tmp_path / "again.safetensors").layers:
        before = one[layer.path.replace(".", "_")]
        assert torch.equal(before.down.flatten(1), layer.down.flatten(1))
        assert torch.equal(before.up.flatten(1), layer.up.flatten(1))


def test_another_alpha_makes_the_same_change(tmp_path: Path) -> None:
    file = trained(tmp_path / "a.safetensors")
    net, adapters = adapted(alpha=8.0)
    start_from(str(file), [adapters], "tiny")
    wanted, x = network(), torch.randn(3, 8)
    load_lora(wanted, file, 1.0)
    assert torch.allclose(net(x), wanted(x), atol=1e-5)


def test_another_alpha_of_a_bfloat16_file_is_rounded_once(tmp_path: Path) -> None:
    """The adapters are float32: a factor of 2 / 3 is not cut to bfloat16."""
    file = tmp_path / "a.safetensors"
    _, adapters = adapted()
    for parameter in adapters.parameters():
        parameter.data.normal_(std=0.3)
    write_lora(file, adapters.to_layers(torch.bfloat16), {}, "kohya")
    _, adapters = adapted(alpha=3.0)
    start_from(str(file), [adapters], "tiny")
    given = {layer.path.replace(".", "_"): layer for layer in read_lora(file).layers}
    for layer in adapters.to_layers():
        wanted = given[layer.path.replace(".", "_")].up.flatten(1).double() * (2 / 3)
        assert torch.equal(layer.up.flatten(1), wanted.float())


def test_more_layers_than_the_file_has(tmp_path: Path) -> None:
    file = trained(tmp_path / "a.safetensors", exclude=("*conv",))
    net, adapters = adapted()
    assert ", 2 more from zero" in start_from(str(file), [adapters], "tiny")[0]
    wanted, x = network(), torch.randn(3, 8)
    load_lora(wanted, file, 1.0)
    assert torch.allclose(net(x), wanted(x), atol=1e-6)


def test_a_dry_run_compares_and_copies_nothing(tmp_path: Path) -> None:
    file = trained(tmp_path / "a.safetensors")
    with torch.device("meta"):
        net = Network()
        adapters = adapt(net, rank=4, alpha=2.0)
        assert start_from(str(file), [adapters], "tiny")[0].startswith("start: 6 layers")
        with pytest.raises(UserError, match=r"`network\.rank` must be 4"):
            start_from(str(file), [adapt(Network(), rank=2)], "tiny")


def wrong(file: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        start_from(str(file), [adapted(**options)[1]], "tiny")
    assert "\n" not in str(caught.value)
    assert "`init.lora`" in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_a_start(tmp_path: Path) -> None:
    assert "there is no LoRA file" in wrong(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    wrong(tmp_path / "torn.safetensors")
    file = trained(tmp_path / "a.safetensors")
    assert "`network.rank` must be 4" in wrong(file, rank=8)
    told = wrong(file, exclude=("*conv",))
    assert "has 2 layers that this run does not adapt" in told
    assert "`exclude`" in told
    layers = read_lora(file).layers
    other = [dataclasses.replace(layer, down=torch.ones(4, 9)) for layer in layers]
    write_lora(tmp_path / "other.safetensors", other)
    assert "it was trained on another model" in wrong(tmp_path / "other.safetensors")
