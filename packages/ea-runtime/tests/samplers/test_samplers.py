"""Samplers: an analytic toy, golden parity with EasyAnimate V2."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ea_runtime.samplers import SAMPLERS

NAMES = ["euler", "euler-a", "dpm++", "pndm", "ddim", "unipc"]
RECORDS = {record.name: record for record in SAMPLERS}
GOLDEN_NAMES = {"euler": "euler", "euler-a": "euler_a", "dpm++": "dpmpp", "pndm": "pndm", "ddim": "ddim"}


def reference(name: str) -> Path:
    root = next((p for p in Path(__file__).parents if (p / "packages").is_dir()), None)
    folder = None if root is None else root.parent / "shared" / "reference" / name
    if folder is None or not folder.is_dir():
        pytest.skip(f"the golden data (shared/reference/{name}) is not here")
    return folder


def test_listing_samplers_imports_no_torch():
    code = "import sys; from ea_runtime.samplers import SAMPLERS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def sample(record, predict, x: torch.Tensor, steps: int, **config) -> torch.Tensor:
    """The sampling loop in its plainest form."""
    scheduler = record.build(**config)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(55)
    drawing = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(predict(scheduler.scale_model_input(x, t), t), t, x, return_dict=False, **drawing)[
            0
        ]
    return x


@pytest.mark.parametrize("name", NAMES)
def test_a_gaussian_is_sampled_with_its_mean_and_spread(name):
    """For data N(mean, spread^2) the best noise prediction is known in closed form."""
    mean, spread = 0.3, 0.2
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas = torch.cumprod(1 - betas, 0)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = alphas[int(t)]
        return (x - a.sqrt() * mean) * (1 - a).sqrt() / (a * spread**2 + 1 - a)

    noise = torch.randn(1, 4, 6, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = sample(RECORDS[name], predict, noise, 400 if name == "euler-a" else 100)
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.std().item() == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("name", list(GOLDEN_NAMES))
def test_golden_sampling(name):
    pytest.importorskip("ea_dit")
    from safetensors.torch import load_file

    from ea_runtime.generation.pipeline import VideoPipeline

    folder = reference("pipeline")
    golden = load_file(folder / "golden.safetensors")
    config = json.loads((folder / "config.json").read_text())
    pipe = VideoPipeline(None, denoiser(), scheduler_config=config["scheduler"])
    given = {key: golden[key] for key in golden if key.endswith(("embeds", "mask"))}
    found = pipe(
        **given,
        latents=golden["noise"],
        generator=torch.Generator().manual_seed(55),
        num_inference_steps=config["steps"],
        guidance_scale=config["guidance_scale"],
        sampler=name,
        output="latents",
    ).latents
    expected = golden[f"latents.{GOLDEN_NAMES[name]}"]
    assert (found - expected).norm() / expected.norm() < 1e-3


def denoiser(cache: list = []):  # noqa: B006 - loaded once for the five samplers
    from ea_dit import Transformer3DModel

    if not cache:
        cache.append(Transformer3DModel.from_pretrained(reference("dit_v2")))
    return cache[0]
