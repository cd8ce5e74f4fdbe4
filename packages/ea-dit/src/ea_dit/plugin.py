"""Hook implementations of ea-dit."""

from __future__ import annotations

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import DenoiserRecord, RecipeRecord


@hookimpl
def ea_denoisers() -> list[DenoiserRecord]:
    return [
        DenoiserRecord(
            "transformer3d",
            "Diffusion transformer of EasyAnimate V2: motion modules, U-ViT skips, learned variance",
            "ea_dit.network.model:Transformer3DModel",
            class_names=("Transformer3DModel",),
            motion="ea_dit.motion_files",
            export="ea_dit.export",
        )
    ]


@hookimpl
def ea_recipes() -> list[RecipeRecord]:
    return [
        RecipeRecord(
            "dit",
            "The denoiser in three stages: pictures, motion modules, the whole network",
            "ea_dit.training.recipe:DitRecipe",
        )
    ]
