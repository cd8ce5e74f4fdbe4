from __future__ import annotations

import math

import torch

from ea_dit.network.config import TransformerConfig
from ea_dit.network.embeddings import PatchEmbed, position_embedding_2d, timestep_features

CPU = torch.device("cpu")


def test_positions_of_the_native_size_are_whole_numbers() -> None:
    embedding = position_embedding_2d(4, 4, 8, base_size=4, scale=1, device=CPU).view(4, 4, 8)
    # dim 8: column sines (2 frequencies), column cosines, row sines, row cosines
    torch.testing.assert_close(embedding[2, 3, 0], torch.tensor(math.sin(3.0)))
    torch.testing.assert_close(embedding[2, 3, 2], torch.tensor(math.cos(3.0)))
    torch.testing.assert_close(embedding[2, 3, 5], torch.tensor(math.sin(2.0 / 100)))
    torch.testing.assert_close(embedding[2, 3, 6], torch.tensor(math.cos(2.0)))


def test_other_sizes_are_interpolated_to_the_native_one() -> None:
    native = position_embedding_2d(4, 4, 8, base_size=4, scale=1, device=CPU).view(4, 4, 8)
    twice = position_embedding_2d(8, 8, 8, base_size=4, scale=1, device=CPU).view(8, 8, 8)
    torch.testing.assert_close(twice[::2, ::2], native)
    wide = position_embedding_2d(4, 8, 8, base_size=4, scale=1, device=CPU).view(4, 8, 8)
    torch.testing.assert_close(wide[:, ::2], native)


def test_float32_is_precise_enough_at_published_sizes() -> None:
    # Against the same formula in float64, 48 x 84 patches of the 768-pixel model.
    embedding = position_embedding_2d(48, 84, 1152, base_size=32, scale=1, device=CPU).view(48, 84, 1152)
    frequencies = 10000.0 ** -(torch.arange(288, dtype=torch.float64) / 288)
    angles = torch.outer(torch.arange(84, dtype=torch.float64) * (32 / 84), frequencies)
    expected = torch.cat([angles.sin(), angles.cos()], dim=1)
    assert (embedding[7, :, :576].double() - expected).abs().max() < 5e-6


def test_large_models_scale_positions_down() -> None:
    assert PatchEmbed(TransformerConfig(sample_size=64)).scale == 1
    assert PatchEmbed(TransformerConfig(sample_size=128)).scale == 2
    assert PatchEmbed(TransformerConfig(sample_size=8)).scale == 1


def test_patches_lie_frame_by_frame_and_row_by_row() -> None:
    config = TransformerConfig(num_attention_heads=4, attention_head_dim=8, in_channels=1, sample_size=8)
    embed = PatchEmbed(config)
    latents = torch.zeros(1, 1, 3, 4, 6)
    changed = latents.clone()
    changed[0, 0, 1, 2, 5] = 1  # frame 1, row of patches 1, column of patches 2
    with torch.no_grad():
        difference = (embed(changed) - embed(latents)).abs().sum(-1)[0]
    assert difference.nonzero().flatten().tolist() == [1 * 6 + 1 * 3 + 2]


def test_timestep_features() -> None:
    features = timestep_features(torch.tensor([0, 999]))
    assert features.shape == (2, 256)
    torch.testing.assert_close(features[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    torch.testing.assert_close(features[1, 0], torch.tensor(math.cos(999.0)))
    torch.testing.assert_close(features[1, 128 + 64], torch.tensor(math.sin(999.0 / 100)), atol=1e-5, rtol=0)
