"""diffusers' offloading hooks and narrow storage on the VAE, whose networks are called without `forward`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor

from ea_vae import AutoencoderKLMagvit

SMALL: dict[str, Any] = {"ch": 8, "ch_mult": (1, 2, 2, 2), "layers_per_block": 2, "norm_num_groups": 4}
KINDS = [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}]


@pytest.fixture
def vae() -> AutoencoderKLMagvit:
    torch.manual_seed(0)
    return AutoencoderKLMagvit(**SMALL).eval()


def coded(vae: AutoencoderKLMagvit) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(1, 3, 5, 16, 16, generator=generator) * 2 - 1
    with torch.no_grad():
        return vae.decode(vae.encode(frames).latent_dist.mode()).sample


def offload(
    vae: AutoencoderKLMagvit, folder: Path, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights wait on disk, and are NaN meanwhile."""
    monkeypatch.setattr(
        torch, "empty_like", lambda one, **options: torch.full(one.shape, float("nan"), dtype=one.dtype)
    )
    apply_group_offloading(
        vae, torch.device("cpu"), torch.device("cpu"), offload_to_disk_path=str(folder), **kind
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rewrites", ["always", "plain"])
def test_offloaded_gives_the_same(
    vae: AutoencoderKLMagvit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: dict[str, Any],
    rewrites: str,
) -> None:
    vae.set_rewrites(rewrites)
    wanted = coded(vae)
    offload(vae, tmp_path, kind, monkeypatch)
    assert vae.decoder.conv_in.weight.isnan().all()
    # mapped files are aligned to 8 bytes: kernels may differ in the last bits
    assert torch.allclose(coded(vae), wanted, rtol=1e-5, atol=1e-6)


def test_networks_without_hooks_are_caught(
    vae: AutoencoderKLMagvit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: with a hook on the whole VAE alone, which nobody calls, the weights stay away."""
    monkeypatch.setattr(AutoencoderKLMagvit, "_group_offload_block_modules", None)
    offload(vae, tmp_path, KINDS[0], monkeypatch)
    assert coded(vae).isnan().any()


def test_narrow_storage_keeps_the_ends_wide(vae: AutoencoderKLMagvit) -> None:
    wanted = coded(vae)
    vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    formats = {name: p.dtype for name, p in vae.named_parameters()}
    assert formats["decoder.conv_in.weight"] == formats["quant_conv.weight"] == torch.float32
    assert formats["decoder.mid_block.convs.0.conv1.weight"] == torch.float8_e4m3fn
    found = coded(vae)
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.5  # random weights; of tiny: tests/test_offload.py
