"""Contact sheets while training: videos of a few prompts, in few steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ea_dit.network.model import Transformer3DModel
from ea_dit.training.options import SampleTable
from ea_runtime.errors import UserError
from ea_runtime.training.recipe import Context, Samples


def draw_samples(
    model: Transformer3DModel, table: SampleTable, parts: str, shape: tuple[int, int, int], context: Context
) -> Samples | None:
    """One video per prompt of `table`, with the current weights, and a sheet of them.

    parts: the model folder with VAE and text encoder. shape: num_frames, height, width. A sheet that cannot be drawn
    (an untrained network may diverge) is reported and skipped: training continues.
    """
    from ea_runtime.video.sheets import contact_sheet

    try:
        videos = sample_videos(model, table, parts, shape, context)
    except UserError as error:
        context.say(f"no sample sheet: {error}")
        return None
    prompts = list(table.sample_prompts)
    return Samples(contact_sheet(videos, prompts), videos, prompts)


def sample_videos(
    model: Transformer3DModel, table: SampleTable, parts: str, shape: tuple[int, int, int], context: Context
) -> np.ndarray:
    """uint8 (N, T, H, W, 3), one for each prompt. The network is in training mode again afterwards."""
    from ea_runtime.generation.pipeline import VideoPipeline
    from ea_runtime.models.layout import GenerationDefaults
    from ea_runtime.models.loading import load_parts
    from ea_runtime.samplers.schedule import schedule_of_model

    num_frames, height, width = shape
    loaded = load_parts(parts, device=context.device, parts=("vae", "text"))
    was_training = model.training
    schedule = schedule_of_model(loaded.scheduler_config)
    # what a run trains at is the size that suits its model; V2's own would be noted as the better one
    own = GenerationDefaults(num_frames=num_frames, height=height, width=width)
    pipe = VideoPipeline(loaded.vae, model, loaded.text, scheduler_config=schedule, defaults=own)
    prompts = list(table.sample_prompts)
    wanted: dict[str, Any] = {"num_frames": num_frames, "height": height, "width": width, "seed": table.seed}
    wanted |= {"num_inference_steps": table.steps, "guidance_scale": table.guidance}
    try:
        # not smoothed: seams show no more than the noise of a few steps
        output = pipe(prompts, **wanted, batch_size=len(prompts), smooth=False)
    finally:
        model.train(was_training)
    assert output.frames is not None
    return output.frames


def sheet_shape(table: SampleTable, buckets: Iterable[Any], stage: str) -> tuple[int, int, int]:
    """(num_frames, height, width): the table's, or those of the largest bucket; stage "align" shows one frame."""
    given = {bucket for bucket in buckets if bucket is not None}
    largest = max(given, key=lambda b: (b.num_frames, b.height * b.width, b.height))
    num_frames = 1 if stage == "align" else largest.num_frames
    return table.num_frames or num_frames, table.height or largest.height, table.width or largest.width
