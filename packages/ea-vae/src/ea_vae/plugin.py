"""Hook implementations of ea-vae."""

from __future__ import annotations

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import PerceptualRecord, RecipeRecord, VaeRecord


@hookimpl
def ea_vaes() -> list[VaeRecord]:
    return [
        VaeRecord(
            "magvit",
            "MagViT and Slice VAE of EasyAnimate V2: 8x in space, 9 frames <-> 3 latent frames",
            "ea_vae.network.model:AutoencoderKLMagvit",
            class_names=("AutoencoderKLMagvit", "AutoencoderKL"),
            export="ea_vae.export",
        )
    ]


@hookimpl
def ea_recipes() -> list[RecipeRecord]:
    return [
        RecipeRecord(
            "vae",
            "The video VAE, in stages: magvit, slice, slice-decoder",
            "ea_vae.training.recipe:VaeRecipe",
        )
    ]


@hookimpl
def ea_perceptual_losses() -> list[PerceptualRecord]:
    return [
        PerceptualRecord(
            "lpips",
            "LPIPS on VGG16's features, with weights from local files",
            "ea_vae.training.lpips_weights:load_lpips",
        )
    ]
