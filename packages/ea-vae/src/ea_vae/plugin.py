"""What ea-vae brings to the host."""

from __future__ import annotations

from typing import Any

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import RecipeRecord, VaeRecord


def _magvit() -> Any:
    from ea_vae.model import AutoencoderKLMagvit

    return AutoencoderKLMagvit


def _recipe() -> Any:
    from ea_vae.recipe import VaeRecipe

    return VaeRecipe


@hookimpl
def ea_vaes() -> list[VaeRecord]:
    return [
        VaeRecord(
            "magvit",
            "MagViT and Slice VAE of EasyAnimate V2: 8x in space, 9 frames <-> 3 latent frames",
            _magvit,
            class_names=("AutoencoderKLMagvit", "AutoencoderKL"),
        )
    ]


@hookimpl
def ea_recipes() -> list[RecipeRecord]:
    return [RecipeRecord("vae", "The video VAE: L1, MSE and KL on pictures, then on clips", _recipe)]
