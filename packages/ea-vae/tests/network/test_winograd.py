"""Winograd's form equals the plain convolution in float64, in bands and blocks too, and a wrong transform is found."""

from __future__ import annotations

import pytest
import torch

from ea_vae.network import winograd
from ea_vae.network.conv import CausalConv3d
from ea_vae.network.rewrites import convolve, enlarge
from ea_vae.network.winograd import convolve_winograd

EXACT = 1e-12
SIZES = [(2, 5, 4, 9, 10), (1, 3, 1, 4, 4), (1, 3, 2, 13, 7), (1, 3, 3, 1, 2)]


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("enlarges", [False, True])
@pytest.mark.parametrize("mode", ["causal", "slice"])
@pytest.mark.parametrize("limits", [(32768, 3 << 20), (30, 3 << 20), (32768, 100)])
@torch.no_grad()
def test_every_size_in_one_piece_in_bands_and_in_blocks(noise, monkeypatch, limits, mode, enlarges):
    monkeypatch.setattr(winograd, "_BAND", limits[0])
    monkeypatch.setattr(winograd, "_TAPS", limits[1])
    for size in SIZES:
        x, weight = noise(*size).double(), noise(40, size[1], 3, 3, 3, seed=1).double()
        for bias in (noise(40, seed=2).double(), None):
            wanted = convolve(enlarge(x) if enlarges else x, weight, bias, (1, 1, 1), 1, mode)
            assert error(convolve_winograd(x, weight, bias, mode, enlarges), wanted) < EXACT


@torch.no_grad()
def test_a_wrong_transform_would_be_found_out(noise, monkeypatch):
    wrong = [list(row) for row in winograd._FILTER]
    wrong[3][1] += 1e-9
    monkeypatch.setattr(winograd, "_FILTER", wrong)
    x, weight = noise(1, 3, 3, 8, 8).double(), noise(4, 3, 3, 3, 3, seed=1).double()
    plain = convolve(x, weight, None, (1, 1, 1), 1, "causal")
    assert error(convolve_winograd(x, weight, None, "causal"), plain) > EXACT


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [({"stride": (1, 2, 2)}, "float32"), ({"spatial_padding": 0}, "float32"), ({}, "bfloat16")],
)
@torch.no_grad()
def test_what_it_cannot_compute_takes_another_form(noise, monkeypatch, settings, dtype):
    monkeypatch.setattr("ea_vae.network.conv.convolve_winograd", lambda *a, **k: pytest.fail("it ran"))
    conv = CausalConv3d(64, 64, **settings).to(getattr(torch, dtype))
    conv(noise(1, 64, 3, 32, 32).to(conv.weight.dtype))
