"""A whole generation with `tiny`, prompt to frames, against the same steps in plain eager PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from baselines import dit, vae
from conftest import compare
from networks import known_latents

PROMPT, SEED = "a red circle moves right", 43
SETTINGS: dict[str, Any] = {"num_frames": 18, "height": 64, "width": 64, "num_inference_steps": 20}


def test_a_video(benchmark: Any, report: Any) -> None:
    from ea_runtime import VideoPipeline
    from ea_runtime.generation.denoise import plan_steps
    from ea_runtime.generation.requests import check_sampler

    pipe = VideoPipeline.from_pretrained("tiny", device="cpu")
    guidance = pipe.defaults.guidance
    size = {name: value for name, value in SETTINGS.items() if name != "num_inference_steps"}
    known = known_latents(pipe, **size)

    def ours() -> torch.Tensor:
        video = pipe(PROMPT, seed=SEED, sampler="dpm++", smooth=False, **SETTINGS)
        assert video.frames is not None
        return torch.from_numpy(video.frames).double()

    def baseline() -> torch.Tensor:
        scheduler = plan_steps(check_sampler("dpm++"), pipe.scheduler_config, SETTINGS["num_inference_steps"])
        told = pipe.text.encode(["", PROMPT])
        x = torch.randn((1, 4, 6, 8, 8), generator=torch.Generator().manual_seed(SEED))
        x = x * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, timestep)
            noise = dit.step(pipe.denoiser, scaled, timestep[None], told.embeds, told.mask, guidance, known)
            x = scheduler.step(noise, timestep, x, return_dict=False)[0]
        frames = vae.decode_video(pipe.vae, x / pipe.geometry.scale, smooth=False)
        return ((frames + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 4, 1).double()

    row = benchmark.pedantic(
        lambda: compare("tiny, 18 frames, 64x64, 20 steps, plain", baseline, ours, 3), rounds=1
    )
    report("generation", rows=[row])
    assert row.error < 1e-2
