"""What ea-dit brings to the host."""

from __future__ import annotations

from typing import Any

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import DenoiserRecord, RecipeRecord


def _transformer() -> Any:
    from ea_dit.network.model import Transformer3DModel

    return Transformer3DModel


def _recipe() -> Any:
    from ea_dit.training.recipe import DitRecipe

    return DitRecipe


def _export() -> Any:
    from ea_dit import export

    return export


def _motion() -> Any:
    from ea_dit import motion_files

    return motion_files


@hookimpl
def ea_denoisers() -> list[DenoiserRecord]:
    return [
        DenoiserRecord(
            "transformer3d",
            "Diffusion transformer of EasyAnimate V2: motion modules, U-ViT skips, learned variance",
            _transformer,
            class_names=("Transformer3DModel",),
            motion=_motion,
            export=_export,
        )
    ]


@hookimpl
def ea_recipes() -> list[RecipeRecord]:
    return [
        RecipeRecord(
            "dit", "The denoiser in three stages: pictures, motion modules, the whole network", _recipe
        )
    ]
