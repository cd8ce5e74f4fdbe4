"""What ea-vae brings to the host."""

from __future__ import annotations

from typing import Any

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import PerceptualRecord, RecipeRecord, VaeRecord


def _magvit() -> Any:
    from ea_vae.network.model import AutoencoderKLMagvit

    return AutoencoderKLMagvit


def _export() -> Any:
    from ea_vae import export

    return export


def _recipe() -> Any:
    from ea_vae.training.recipe import VaeRecipe

    return VaeRecipe


def _lpips(weights: Any, *, device: str = "cpu") -> Any:
    from ea_vae.training.lpips_weights import load_lpips

    return load_lpips(weights, device=device)


@hookimpl
def ea_vaes() -> list[VaeRecord]:
    return [
        VaeRecord(
            "magvit",
            "MagViT and Slice VAE of EasyAnimate V2: 8x in space, 9 frames <-> 3 latent frames",
            _magvit,
            class_names=("AutoencoderKLMagvit", "AutoencoderKL"),
            export=_export,
        )
    ]


@hookimpl
def ea_recipes() -> list[RecipeRecord]:
    return [RecipeRecord("vae", "The video VAE, in stages: magvit, slice, slice-decoder", _recipe)]


@hookimpl
def ea_perceptual_losses() -> list[PerceptualRecord]:
    return [PerceptualRecord("lpips", "LPIPS on VGG16's features, with weights from local files", _lpips)]
