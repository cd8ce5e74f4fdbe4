"""Contact sheets while training: what the denoiser makes of a few prompts, decoded, few steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ea_runtime.errors import UserError

if TYPE_CHECKING:
    from ea_dit.recipe import DitRecipe


def draw_sheet(recipe: DitRecipe) -> Any | None:
    """uint8 (H, W, 3): one video a prompt of [samples] with the weights as they are now; None without prompts.

    A sheet that cannot be drawn (an untrained network may diverge) is told and left out: training goes on.
    """
    table = recipe.options.samples
    if not table.sample_prompts:
        return None
    from ea_runtime.training.sheets import contact_sheet

    try:
        videos = sample_videos(recipe)
    except UserError as error:
        recipe.context.say(f"no sample sheet: {error}")
        return None
    return contact_sheet(videos, list(table.sample_prompts))


def sample_videos(recipe: DitRecipe) -> np.ndarray:
    """uint8 (N, T, H, W, 3), one for each prompt. The network is in training mode again afterwards."""
    from ea_runtime.folder import load_parts
    from ea_runtime.pipeline import VideoPipeline
    from ea_runtime.samplers.schedule import schedule_of_model

    table, device = recipe.options.samples, recipe.context.device
    num_frames, height, width = _shape(recipe)
    loaded = load_parts(recipe.options.data.parts, device=device, parts=("vae", "text"))
    was_training = recipe.model.training
    pipe = VideoPipeline(
        vae=loaded.vae, denoiser=recipe.model, text=loaded.text,
        scheduler_config=schedule_of_model(loaded.scheduler_config),
    )  # fmt: skip
    try:
        output = pipe(
            list(table.sample_prompts), num_frames=num_frames, height=height, width=width,
            num_inference_steps=table.steps, guidance_scale=table.guidance, seed=table.seed,
            batch_size=len(table.sample_prompts), smooth=False,  # seams show no more than a few steps' noise
        )  # fmt: skip
    finally:
        recipe.model.train(was_training)
    assert output.frames is not None
    return output.frames


def _shape(recipe: DitRecipe) -> tuple[int, int, int]:
    """(num_frames, height, width): the table's, or those of the last phase's largest bucket."""
    table = recipe.options.samples
    buckets: set[Any] = {bucket for bucket in recipe.phases()[-1].buckets if bucket is not None}
    largest = max(buckets, key=lambda b: (b.num_frames, b.height * b.width, b.height))
    num_frames = 1 if recipe.options.stage == "align" else largest.num_frames
    return table.num_frames or num_frames, table.height or largest.height, table.width or largest.width
