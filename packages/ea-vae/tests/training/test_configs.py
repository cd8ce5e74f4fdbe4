"""The VAE's configs are valid, and the published ones have EasyAnimate V2's figures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from ea_runtime.settings import validate
from ea_runtime.training.options import read_config
from ea_vae.network.config import VaeConfig
from ea_vae.training.recipe_options import VaeOptions

NAMES = (
    "published/vae-magvit",
    "published/vae-slice",
    "published/vae-slice-decoder",
    "tiny/vae-pictures",
    "tiny/vae-clips",
    "tiny/vae-clips-more",
)
#: steps, batch, size, frames, l1, mse
PUBLISHED = {
    "magvit": (350_000, 128, 128, 9, 1.0, 0.1),
    "slice": (200_000, 96, 256, 25, 1.0, 0.0),
    "slice-decoder": (100_000, 96, 256, 25, 0.0, 1.0),
}


@pytest.fixture
def configs() -> Path:
    for parent in Path(__file__).resolve().parents:
        if (parent / "configs").is_dir():
            return parent / "configs"
    pytest.skip("the project's configs are absent: the tests do not lie in its tree")


@pytest.mark.parametrize("name", NAMES)
def test_they_are_valid(name: str, configs: Path) -> None:
    run = read_config(configs / f"{name}.toml")
    assert run.run.recipe == "vae"
    options = validate(VaeOptions, run.recipe_options, name)
    options.check()
    if options.model:
        VaeConfig(**options.model)
    if name.startswith("tiny"):
        assert (options.loss.l1, options.loss.mse, options.loss.adversarial, options.loss.perceptual) == (
            1,
            3,
            0,
            0,
        )
        assert run.train.muon_lr > 0


@pytest.mark.parametrize("stage", PUBLISHED)
def test_the_published_figures(stage: str, configs: Path) -> None:
    run = read_config(configs / "published" / f"vae-{stage}.toml")
    options = validate(VaeOptions, run.recipe_options, stage)
    train, data, loss = run.train, options.data, options.loss
    assert options.stage == stage
    found = (train.steps, train.batch_size, data.size, data.num_frames, loss.l1, loss.mse)
    assert found == PUBLISHED[stage]
    assert (train.optimizer, train.lr, train.betas, train.muon_lr) == ("adam", 1e-4, (0.5, 0.9), 0.0)
    assert (train.schedule, train.warmup, train.weight_decay, train.ema) == ("constant", 0, 0.0, 0.0)
    assert (loss.kl, loss.perceptual, loss.adversarial, loss.adversarial_start) == (1e-6, 1.0, 0.5, 50_001)
    assert (loss.reduction, loss.perceptual_name) == ("sum", "lpips")
    assert options.discriminator.model_dump() == {
        "channels": 64,
        "num_layers": 3,
        "clip_channels": (64, 128, 256),
    }


def test_the_published_stages_follow_each_other(configs: Path) -> None:
    runs = [read_config(configs / "published" / f"vae-{stage}.toml") for stage in PUBLISHED]
    for before, after in pairwise(runs):
        assert after.recipe_options["init"]["folder"] == f"{before.run.out}/final"
