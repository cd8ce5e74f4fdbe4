"""Known frames through real networks: the reference's numbers, and pictures that the bundled model sets in motion."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ea_data.draw.caption import caption
from ea_data.draw.check import check_prompts
from ea_data.draw.known import psnr
from ea_data.draw.scene import render, sample_scene
from ea_dit import Transformer3DModel
from ea_runtime import VideoPipeline
from ea_runtime.generation import window_inputs
from ea_runtime.generation.known_frames import encode_known_frames
from ea_runtime.generation.result import VideoOutput
from ea_vae import AutoencoderKLMagvit

CASES = ("v2_start", "v2_start_end", "v3_start", "v3_start_end", "v3_text")
SAMPLERS = {"dpmpp": "dpm++", "euler": "euler", "ddim": "ddim"}


def relative(ours: Tensor, golden: Tensor) -> float:
    return float((ours - golden).norm() / golden.norm())


@pytest.fixture(scope="module")
def pipes(reference: Path) -> dict[str, VideoPipeline]:
    schedule = json.loads((reference / "pipeline_i2v" / "config.json").read_text())["scheduler"]
    del schedule["steps_offset"]
    found = {}
    for version, vae in (("v2", "vae_magvit"), ("v3", "vae_slice")):
        parts = [
            cls.from_pretrained(reference / name)
            for cls, name in ((AutoencoderKLMagvit, vae), (Transformer3DModel, f"dit_{version}"))
        ]
        found[version] = VideoPipeline(*parts, scheduler_config=schedule)
        # the code of July 2024 takes the number of the VAE's config
        found[version].geometry = replace(found[version].geometry, scale=0.1825)
    return found


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "pipeline_i2v" / "golden.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_what_is_known_is_encoded_as_the_reference_does(
    pipes: dict[str, VideoPipeline], golden: dict[str, Tensor], case: str
) -> None:
    pipe = pipes[case[:2]]
    known = encode_known_frames(
        pipe.vae,
        pipe.geometry,
        pipe.denoiser.config,
        golden[f"{case}.video"],
        golden[f"{case}.mask_video"] / 255,
        posterior="mode",
    )
    assert relative(known.latents, golden[f"{case}.image_latents"]) < 1e-5
    if case.startswith("v3"):
        assert known.inputs is not None
        mask, video = known.inputs.chunk(2, dim=1)
        assert relative(mask, golden[f"{case}.mask_latents"]) < 1e-5
        assert relative(video, golden[f"{case}.masked_video_latents"]) < 1e-5


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("case", CASES)
def test_sampling_equals_reference(
    pipes: dict[str, VideoPipeline], golden: dict[str, Tensor], case: str, sampler: str
) -> None:
    version = case[:2]
    inputs: dict[str, Any] = {}
    if case != "v3_text":  # nothing is known there: what the pipeline then gives is part of the test
        inputs = {"video": golden[f"{case}.video"], "mask": golden[f"{case}.mask_video"]}
        if version == "v3":
            inputs["clip_image_embeds"] = golden["clip_image_embeds"]
    texts = {name: golden[name] for name in golden if name.startswith(("prompt_", "negative_prompt_"))}
    found = pipes[version](
        **texts,
        **inputs,
        latents=golden[f"{case}.noise"],
        num_frames=16 if version == "v3" else 18,
        num_inference_steps=5,
        guidance_scale=7.0,
        sampler=SAMPLERS[sampler],
        output="latents",
        posterior="mode",
    )
    assert relative(found.latents, golden[f"{case}.latents.{sampler}"]) < 1e-3


@pytest.mark.slow
def test_tiny_sets_pictures_in_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four drawn pictures of combinations that training never saw; docs/tiny.md has the figures of sixty."""
    pipe = VideoPipeline.from_pretrained("tiny", device="cpu", dtype="float32")
    made = []

    def make(index: int, has_end: bool) -> tuple[VideoOutput, float, float]:
        """The video, and PSNR of its first and its last frame to those of a drawn scene."""
        scene = sample_scene(77, index, "heldout")
        truth = render(scene, 64, 64, 18)
        ends = {"image_end": truth[-1]} if has_end else {}
        prompt = caption(scene, 77, index, is_full=True)
        output = pipe(prompt, image=truth[0], seed=index, **ends)
        assert output.frames is not None
        frames = output.frames[0]
        made.append((prompt, frames))
        return output, psnr(frames[0], truth[0]), psnr(frames[-1], truth[-1])

    assert all(make(index, False)[1] >= 28 for index in (0, 2))
    assert make(1, True)[2] >= 26
    output, first, last = make(22, True)
    assert first >= 28
    assert last >= 26
    assert check_prompts(made).counts["all"] == (4, 4)
    # the twin: the last latent frame as it was encoded, a still picture
    monkeypatch.setattr(window_inputs, "settle", lambda vae, geometry, latents, *frames: latents)
    unsettled, _, worse = make(22, True)
    assert worse < last - 2
    assert torch.equal(unsettled.latents[:, :, :-1], output.latents[:, :, :-1])
    assert not torch.equal(unsettled.latents[:, :, -1], output.latents[:, :, -1])
