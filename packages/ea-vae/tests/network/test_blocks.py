from __future__ import annotations

import pytest
import torch

from ea_vae.network.blocks import DownBlock, MidBlock3D, UpBlock, VideoAttention
from ea_vae.network.config import DOWN_BLOCKS, UP_BLOCKS, VaeConfig


@pytest.fixture
def config() -> VaeConfig:
    return VaeConfig(ch=4, norm_num_groups=2, layers_per_block=2)


@pytest.mark.parametrize("name", DOWN_BLOCKS)
def test_down_blocks(config, noise, name):
    spec = DOWN_BLOCKS[name]
    out = DownBlock(4, 8, spec, False, config)(noise(1, 4, 5, 8, 8), "causal")
    size = 4 if spec.resamples_space else 8
    assert out.shape == (1, 8, 3 if spec.resamples_time else 5, size, size)
    last = DownBlock(4, 8, spec, True, config)
    assert last(noise(1, 4, 5, 8, 8), "causal").shape == (1, 8, 5, 8, 8)
    assert last.downsampler is None


@pytest.mark.parametrize("name", UP_BLOCKS)
@pytest.mark.parametrize(("mode", "frames"), [("causal", 5), ("slice", 6)])
def test_up_blocks(config, noise, name, mode, frames):
    spec = UP_BLOCKS[name]
    out = UpBlock(4, 8, spec, False, config)(noise(1, 4, 3, 4, 4), mode)
    size = 8 if spec.resamples_space else 4
    assert out.shape == (1, 8, frames if spec.resamples_time else 3, size, size)


@pytest.mark.parametrize("mode", ["causal", "single"])
def test_one_latent_frame_stays_one_frame(config, noise, mode):
    block = UpBlock(4, 4, UP_BLOCKS["SpatialTemporalUpBlock3D"], False, config)
    assert block(noise(1, 4, 1, 4, 4), mode).shape == (1, 4, 1, 8, 8)


def plain_attention(layer: VideoAttention, tokens: torch.Tensor) -> torch.Tensor:
    """One head, written out: tokens (N, L, C)."""
    normed = layer.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
    q, k, v = layer.to_q(normed), layer.to_k(normed), layer.to_v(normed)
    scores = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return layer.to_out(scores @ v) + tokens


def test_attention_layouts(config, noise):
    x = noise(2, 4, 3, 2, 5)
    layer = VideoAttention(4, 1, "3d", config)
    wanted = plain_attention(layer, x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(layer(x), wanted, atol=1e-5)
    layer = VideoAttention(4, 1, "spatial", config)
    frame = plain_attention(layer, x[:, :, 1].flatten(2).transpose(1, 2)).transpose(1, 2).reshape(2, 4, 2, 5)
    assert torch.allclose(layer(x)[:, :, 1], frame, atol=1e-5)
    layer = VideoAttention(4, 1, "temporal", config)
    spot = plain_attention(layer, x[:, :, :, 1, 2].transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(layer(x)[:, :, :, 1, 2], spot, atol=1e-5)


@pytest.mark.parametrize("kind", ["3d", "spatial", "temporal", "spatial_temporal"])
def test_mid_block_attention_types(noise, kind):
    config = VaeConfig(
        ch=4, norm_num_groups=2, mid_block_attention_type=kind, mid_block_num_attention_heads=2
    )
    assert MidBlock3D(8, config)(noise(1, 8, 3, 4, 4), "causal").shape == (1, 8, 3, 4, 4)


def test_mid_block_without_attention(noise):
    config = VaeConfig(ch=4, norm_num_groups=2, mid_block_use_attention=False)
    block = MidBlock3D(8, config)
    assert not any("attentions" in key for key in block.state_dict())
    assert block(noise(1, 8, 3, 4, 4), "causal").shape == (1, 8, 3, 4, 4)


def test_heads_must_divide_the_width(config):
    with pytest.raises(ValueError, match="heads must divide the width 4, got 3"):
        VideoAttention(4, 3, "3d", config)
