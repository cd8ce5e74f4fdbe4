"""The repository's configs are valid and have the intended figures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from ea_dit.training.options import DitOptions
from ea_dit.training.recipe import DitRecipe
from ea_dit.training.trainable import Stage
from ea_runtime.errors import UserError
from ea_runtime.settings import validate
from ea_runtime.training.options import RunConfig, read_config

CONFIGS = Path(__file__).parents[4] / "configs"
STAGES: tuple[Stage, ...] = ("align", "motion", "finetune")

pytestmark = pytest.mark.skipif(not CONFIGS.is_dir(), reason="configs are found from a checkout only")


def read(name: str, *settings: str) -> tuple[RunConfig, DitOptions]:
    run = read_config(CONFIGS / name, list(settings))
    return run, validate(DitOptions, run.recipe_options, name)


@pytest.mark.parametrize("folder", ["tiny", "published"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_config_is_valid(folder: str, stage: Stage) -> None:
    run, options = read(f"{folder}/dit-{stage}.toml")
    assert run.run.recipe == "dit"
    assert options.stage == stage
    assert DitRecipe.options_model is DitOptions
    assert options.samples.sample_prompts
    assert run.train.sample_every > 0


@pytest.mark.parametrize(("folder", "more"), [("tiny", ["finetune-more"]), ("published", [])])
def test_each_stage_goes_on_from_the_one_before(folder: str, more: list[str]) -> None:
    runs = [read(f"{folder}/dit-{stage}.toml") for stage in (*STAGES, *more)]
    for (before, _), (_, options) in pairwise(runs):
        assert options.init.folder == f"{before.run.out}/final"


@pytest.mark.parametrize("folder", ["tiny", "published"])
def test_known_frames_have_a_config(folder: str) -> None:
    run, options = read(f"{folder}/dit-inpaint.toml")
    assert (run.train.task, options.stage) == ("inpaint", "finetune")
    assert options.inpaint is not None
    if folder == "published":
        assert (options.inpaint.known_frames, set(options.inpaint.masks.values())) == ((1, 2, 3, 4), {1.0})
    with pytest.raises(ValueError, match="`masks` must have weights of 0 or more"):
        read(f"{folder}/dit-inpaint.toml", "inpaint.masks={all=-1}")


@pytest.mark.parametrize("stage", STAGES)
def test_the_published_figures(stage: Stage) -> None:
    run, options = read(f"published/dit-{stage}.toml")
    train = run.train
    assert (train.lr, train.weight_decay, train.eps, train.clip) == (2e-5, 3e-2, 1e-10, 1.0)
    assert (train.dtype, train.schedule, train.warmup, train.muon_lr) == ("bf16", "constant", 100, 0.0)
    assert train.gradient_checkpointing
    assert (options.loss.snr, options.loss.min_snr, options.loss.uniform_part) == (False, 0.0, 1.0)
    assert options.data.drop_text == 0.1
    if stage == "align":
        assert options.init.from_2d
        return
    assert (options.data.num_frames, options.data.stride, options.data.random_frame_crop) == (144, 1, True)
    if stage == "finetune":
        assert [phase.size for phase in options.phases] == [256, 512, 768]
        assert all(phase.start < train.steps for phase in options.phases)


def test_the_skips_can_be_left_out() -> None:
    """The ablation's settings, in every stage's config or in the first only."""
    _, options = read("tiny/dit-align.toml", "model.enable_uvit=false")
    assert options.model["enable_uvit"] is False
    for stage in STAGES[1:]:
        _, options = read(f"tiny/dit-{stage}.toml", "model.enable_uvit=false")
        assert options.model == {"enable_uvit": False}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("data.drop_texts=0.2", "unknown key `data.drop_texts`; did you mean 'drop_text'?"),
        ("init.form_2d=x", "unknown key `init.form_2d`; did you mean 'from_2d'?"),
        ("samples.prompts=x", "unknown key `samples.prompts`; did you mean 'sample_prompts'?"),
    ],
)
def test_a_wrong_key_is_named(setting: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        read("tiny/dit-finetune.toml", setting)
    assert expected in str(caught.value)


def test_settings_are_typed() -> None:
    _, options = read("tiny/dit-finetune.toml", 'trainable.patterns=["proj_out"]')
    assert options.trainable.patterns == ("proj_out",)
