from __future__ import annotations

import logging

import pytest

from ea_vae import AutoencoderKLMagvit, VaeConfig


def test_both_spellings_of_the_widths():
    assert VaeConfig().channels == (128, 256, 512, 512)
    assert VaeConfig(ch=8, ch_mult=[1, 2, 4, 8], norm_num_groups=1).channels == (8, 16, 32, 64)
    assert VaeConfig(block_out_channels=[32, 64, 64, 64]).channels == (32, 64, 64, 64)
    both = VaeConfig(ch=32, ch_mult=[1, 2, 4], block_out_channels=[32, 64, 128], mini_batch_encoder=5)
    assert both.channels == (32, 64, 128)


def test_ratios_follow_from_the_blocks():
    config = VaeConfig()
    assert (config.spatial_ratio, config.temporal_ratio) == (8, 4)
    eight = VaeConfig(
        down_block_types=["SpatialTemporalDownBlock3D"] * 4,
        up_block_types=["SpatialTemporalUpBlock3D"] * 4,
        slice_compression_vae=True,
        mini_batch_encoder=8,
        mini_batch_decoder=1,
    )
    assert (eight.spatial_ratio, eight.temporal_ratio) == (8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"down_block_types": ["Spacial"] * 4}, r"'Spacial'.*use DownBlock3D, SpatialDownBlock3D"),
        ({"up_block_types": ["SpatialUpBlock3D"] * 3}, "must name 4 blocks, one for each width, got 3"),
        ({"up_block_types": ["SpatialUpBlock3D"] * 4}, r"must undo.*4x in time.*got 8x and 1x"),
        ({"down_block_types": "__import__('os').system('true')"}, "must be a list of block types"),
        ({"mid_block_type": "MidBlock2D"}, "`mid_block_type` must be one of MidBlock3D"),
        ({"mid_block_attention_type": "4d"}, "3d, spatial, temporal"),
        ({"act_fn": "tanh"}, "silu"),
        ({"use_gc_blocks": [True] * 4}, "`use_gc_blocks` is not supported"),
        ({"ch": 20}, "`norm_num_groups` must divide.*use 20"),
        ({"ch": 32, "block_out_channels": [64, 128, 256, 256]}, "must equal `ch` x `ch_mult`"),
        ({"block_out_channels": []}, "one or more positive widths"),
        ({"layers_per_block": 0}, "`layers_per_block` must be a whole number of 1 or more, got 0"),
        ({"latent_channels": "4"}, "`latent_channels` must be a whole number"),
        ({"mini_batch_encoder": 8}, r"got 8 and 3; use 9 and 3"),
        ({"slice_compression_vae": True}, r"got 9 and 3; use 12 and 3"),
    ],
)
def test_errors_name_the_argument(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        VaeConfig(**settings)
    assert "\n" not in str(caught.value)


def test_unknown_keys_are_reported_not_fatal(caplog):
    with caplog.at_level(logging.WARNING):
        config = VaeConfig.from_dict({"latent_channels": 8, "colour": "red", "_class_name": "AutoencoderKL"})
    assert config.latent_channels == 8
    assert "colour" in caplog.text
    assert "_class_name" not in caplog.text
    small = {
        "ch": 4,
        "ch_mult": [1, 1, 1],
        "norm_num_groups": 2,
        "layers_per_block": 1,
        "mini_batch_encoder": 5,
    }
    assert AutoencoderKLMagvit.from_config({**small, "colour": "red"}).config.ch == 4
