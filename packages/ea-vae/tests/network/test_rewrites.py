"""The rewrites equal the plain convolutions in float64, one by one and in whole networks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from ea_vae.export import for_refit
from ea_vae.network.conv import CausalConv3d
from ea_vae.network.rewrites import convolve, convolve_summed, double_time, enlarge, enlarge_convolve

EXACT = 1e-12


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.fixture
def operands(noise):
    """operands(frames): x (2, 3, frames, 4, 6), weight (5, 3, 3, 3, 3), bias (5,) in float64."""

    def make(frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shapes = ((2, 3, frames, 4, 6), (5, 3, 3, 3, 3), (5,))
        x, weight, bias = (noise(*shape, seed=i).double() for i, shape in enumerate(shapes))
        return x, weight, bias

    return make


@pytest.mark.parametrize("mode", ["causal", "slice", "single"])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 9])
def test_tap_summing(operands, mode, frames):
    x, weight, bias = operands(frames)
    for stride, padding, its_bias in itertools.product(
        [(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 2)], [0, 1], [bias, None]
    ):
        settings = (weight, its_bias, stride, padding, mode)
        assert error(convolve_summed(x, *settings), convolve(x, *settings)) < EXACT


@pytest.mark.parametrize("mode", ["causal", "slice"])
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("summed", [False, True])
def test_phase_convolution(operands, mode, frames, summed):
    x, weight, bias = operands(frames)
    for its_bias in (bias, None):
        wanted = convolve(enlarge(x), weight, its_bias, (1, 1, 1), 1, mode)
        assert error(enlarge_convolve(x, weight, its_bias, mode, summed), wanted) < EXACT


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_doubling_time(noise, frames):
    x = noise(2, 3, frames, 4, 6).double()
    twice = F.interpolate(x, scale_factor=(2, 1, 1), mode="trilinear")
    assert error(double_time(x, keep_first=False), twice) < EXACT
    if frames > 1:
        rest = F.interpolate(x[:, :, 1:], scale_factor=(2, 1, 1), mode="trilinear")
        assert error(double_time(x, keep_first=True), torch.cat([x[:, :, :1], rest], 2)) < EXACT


@pytest.mark.parametrize("frames", [1, 5, 9])
@pytest.mark.parametrize(
    "settings", [{}, {"slice_compression_vae": True, "mini_batch_encoder": 8, "mini_batch_decoder": 2}]
)
@torch.no_grad()
def test_whole_networks(make_vae, noise, frames, settings):
    vae = make_vae(**settings).double()
    frames -= 1 if settings and frames == 5 else 0
    x, z = noise(1, 3, frames, 16, 24).double(), noise(1, 4, (frames + 3) // 4, 4, 6).double()
    found = {}
    for choice in ("plain", "always"):
        vae.set_rewrites(choice)
        found[choice] = (vae.encode(x).latent_dist.parameters, vae.decode(z).sample)
    for ours, wanted in zip(found["always"], found["plain"], strict=True):
        assert 0 <= error(ours, wanted) < EXACT


def test_training_runs_the_plain_form_and_gets_its_gradients(noise):
    torch.manual_seed(0)
    conv, x = CausalConv3d(2, 3), noise(1, 2, 5, 4, 4)
    conv.rewrites = "always"
    out = conv(x)
    assert torch.equal(out, convolve(x, conv.weight, conv.bias, (1, 1, 1), 1, "causal"))
    out.sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert not torch.equal(conv(x), out)  # differences in rounding show that another form ran
        assert torch.allclose(conv(x), out, atol=1e-5)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
def test_a_picture_in_training_gets_the_plain_forms_gradients(operands, stride, monkeypatch):
    x, weight, bias = operands(1)
    conv = CausalConv3d(3, 5, stride=stride).double()
    conv.load_state_dict({"weight": weight, "bias": bias})
    calls = []
    monkeypatch.setattr(
        "ea_vae.network.conv.convolve_summed", lambda *a: calls.append(1) or convolve_summed(*a)
    )
    found = {}
    for choice in (None, "plain"):
        conv.rewrites = choice
        conv.zero_grad()
        out = conv(x.requires_grad_())
        (grad,) = torch.autograd.grad(out.sin().sum(), [x], retain_graph=True)
        out.sin().sum().backward(inputs=list(conv.parameters()))
        found[choice] = (out.detach(), grad, conv.weight.grad, conv.bias.grad)
    assert len(calls) == 1, "with its taps summed unless that is turned off"
    for ours, wanted in zip(found[None], found["plain"], strict=True):
        assert error(ours, wanted) < EXACT


@torch.no_grad()
def test_weights_that_change_in_any_way_are_seen(noise):
    conv, x = CausalConv3d(2, 3), noise(1, 2, 3, 4, 4)
    conv.rewrites = "always"
    before = conv(x)
    conv.weight.data.mul_(2)
    changed = conv(x)
    conv.weight.data = conv.weight.data / 2
    assert not torch.allclose(changed, before)
    assert torch.equal(conv(x), before)


@pytest.mark.parametrize(("is_for_refit", "convolutions"), [(False, 3), (True, 1)])
@torch.no_grad()
def test_an_exported_graph_sums_taps_but_for_refitting(make_vae, noise, is_for_refit, convolutions):
    vae = make_vae().double()
    if is_for_refit:
        for_refit(vae)
    conv, x = vae.decoder.conv_in, noise(1, 4, 3, 4, 6).double()
    wanted = convolve(x, conv.weight, conv.bias, (1, 1, 1), 1, "causal")
    program = torch.export.export(conv, (x,), strict=False)
    ran = [node for node in program.graph.nodes if "conv" in str(node.target)]
    assert len(ran) == convolutions
    assert error(program.module()(x), wanted) < EXACT


def test_a_rewrite_that_is_wrong_would_be_found_out(operands):
    x, weight, bias = operands(3)
    wrong = weight.clone()
    wrong[:, :, 0] += 1e-9
    settings = (bias, (1, 1, 1), 1, "causal")
    assert error(convolve_summed(x, wrong, *settings), convolve(x, weight, *settings)) > EXACT


@torch.no_grad()
def test_onednn_gives_what_torch_gives(noise):
    x, weight, bias = noise(1, 16, 5, 16, 16), noise(16, 16, 3, 3, 3, seed=1), noise(16, seed=2)
    for mode in ("causal", "slice"):
        settings = (x, weight, bias, (1, 1, 1), 1, mode)
        assert error(convolve(*settings), convolve(*settings, direct=False)) < 1e-5
        assert error(convolve_summed(*settings), convolve(*settings, direct=False)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("mode", ["causal", "slice"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(32, 32), (33, 32), (32, 35)])
def test_few_filters_take_four_outputs_at_once(noise, mode, batch, size):
    weight, bias = noise(3, 16, 3, 3, 3, seed=1), noise(3, seed=2)
    taps: list[tuple[int, ...]] = []
    run = torch.mkldnn_convolution

    def watched(x, weight, *settings):
        taps.append(tuple(weight.shape[-2:]))
        return run(x, weight, *settings)

    for frames in (1, 2, 5):
        x = noise(batch, 16, frames, *size)
        for laid_out in (x, x.contiguous(memory_format=torch.channels_last_3d)):
            settings = (laid_out, weight, bias, (1, 1, 1), 1, mode)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "mkldnn_convolution", watched)
                found = convolve(*settings), convolve_summed(*settings)
            for one in found:
                assert error(one, convolve(*settings, direct=False)) < 1e-5
    assert ((4, 4) in taps) == (size == (32, 32))
