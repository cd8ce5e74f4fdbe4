"""Channels last on a CPU: which convolutions take it, that values stay, and that the layout stays."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ea_vae.network.conv import CausalConv3d, Mode, PointwiseConv3d
from ea_vae.network.norm import GroupNorm
from ea_vae.network.rewrites import double_time, is_last, lay_out


@pytest.mark.parametrize(
    ("shape", "out", "last"),
    [
        ((1, 16, 2, 32, 32), 16, True),
        ((1, 16, 2, 32, 31), 16, False),  # 1,984 positions
        ((1, 128, 2, 32, 32), 512, True),
        ((1, 129, 2, 32, 32), 512, False),
        ((1, 64, 3, 16, 16), 64, True),  # 49,152 elements
        ((1, 64, 2, 16, 16), 64, False),
        ((1, 64, 3, 16, 16), 65, False),
    ],
)
@torch.no_grad()
def test_layout_follows_positions_and_channels(shape: tuple[int, ...], out: int, last: bool) -> None:
    x, weight = torch.zeros(shape), torch.zeros(out, shape[1], 3, 3, 3)
    assert is_last(lay_out(x, weight)) == last
    assert is_last(lay_out(lay_out(x), weight)) == last
    assert is_last(lay_out(x))
    assert lay_out(x.double(), weight).stride() == x.double().stride()
    with torch.enable_grad():
        assert lay_out(x, weight) is x


@torch.no_grad()
@pytest.mark.parametrize("mode", ["causal", "slice"])
@pytest.mark.parametrize("form", ["direct", "summed", "phase", "both", "winograd"])
def test_a_layout_changes_no_value_and_stays(form: str, mode: Mode) -> None:
    enlarges = form in ("phase", "both")
    conv = CausalConv3d(16, 16)
    x = torch.randn(1, 16, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    run = conv._run_enlarging if enlarges else conv._run
    wanted = run("plain", x, mode)
    assert not is_last(wanted)
    for given in (x, lay_out(x)):
        found = run(form, given, mode)
        assert is_last(found)
        assert torch.allclose(found, wanted, atol=2e-5)
    assert is_last(double_time(lay_out(x), keep_first=True))
    assert torch.equal(double_time(lay_out(x), keep_first=True), double_time(x, keep_first=True))


@torch.no_grad()
def test_one_tap_is_a_linear_layer_on_the_channels() -> None:
    conv = PointwiseConv3d(8, 5).double()
    x = torch.randn(2, 8, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = conv(x.contiguous(memory_format=torch.channels_last_3d))
    assert is_last(found)
    assert not is_last(conv(x))
    assert torch.allclose(found, conv(x), atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_norms_are_as_exact_as_of_plain_tensors(batch: int) -> None:
    x = torch.randn(batch, 16, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    x += 30 * torch.randn(1, 16, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    norm = GroupNorm(4, 16, eps=1e-6)
    norm.weight.uniform_(0.5, 2.0)
    norm.bias.uniform_(-1.0, 1.0)
    found = norm(lay_out(x))
    wanted = F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), 1e-6)
    assert is_last(found)
    assert float((found.double() - wanted).norm() / wanted.norm()) < 5e-7
    assert float((norm.double()(lay_out(x).double()) - wanted).abs().max()) < 1e-11
