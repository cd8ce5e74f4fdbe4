"""What the tests of ea-vae share: a small VAE of each mode, and the golden data where it is at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ea_vae import AutoencoderKLMagvit

SMALL = {"ch": 4, "ch_mult": (1, 1, 2, 2), "layers_per_block": 1, "norm_num_groups": 2}
SLICE = {"slice_compression_vae": True, "mini_batch_encoder": 8, "mini_batch_decoder": 2}


def build(**settings: object) -> AutoencoderKLMagvit:
    """A seeded VAE whose every parameter is random, norms and biases too, so that no branch is dead."""
    torch.manual_seed(0)
    vae = AutoencoderKLMagvit(**{**SMALL, **settings})  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vae.eval()


@pytest.fixture
def make_vae() -> Callable[..., AutoencoderKLMagvit]:
    """Builds a small VAE with other settings."""
    return build


@pytest.fixture
def magvit() -> AutoencoderKLMagvit:
    """A small VAE in MagViT mode, 9 frames <-> 3 latent frames."""
    return build()


@pytest.fixture
def sliced() -> AutoencoderKLMagvit:
    """A small VAE in slice mode, 8 frames <-> 2 latent frames."""
    return build(**SLICE)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of golden data; the test is skipped where it is absent."""
    for parent in Path(__file__).resolve().parents:
        if (parent / "packages").is_dir():
            folder = parent.parent / "shared" / "reference"
            if folder.is_dir():
                return folder
            pytest.skip(f"golden data is absent: no folder {folder.name} beside the project")
    pytest.skip("golden data is absent: the tests do not lie in the project's tree")


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    """Seeded standard normal tensors: noise(*shape, seed=0)."""

    def draw(*shape: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return draw
