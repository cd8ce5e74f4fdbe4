"""The recipe "text": what it draws, that it learns, and what it saves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ea_data.draw.caption import caption
from ea_data.draw.scene import HELDOUT_COMBINATIONS, sample_scene
from ea_data.training.text_recipe import (
    ATTRIBUTES,
    CaptionOptions,
    TextOptions,
    TextRecipe,
    draw_caption,
    heldout_captions,
    labels,
)
from ea_runtime.errors import UserError
from ea_runtime.text import clean_caption
from ea_runtime.text.encoder import TextEncoder
from ea_runtime.training.recipe import Context

OPTIONS = TextOptions.model_validate(
    {"data": {"num_samples": 2000}, "model": {"d_model": 32, "d_ff": 64, "d_kv": 8}}
)


def make(options: TextOptions = OPTIONS, seed: int = 0) -> TextRecipe:
    return TextRecipe(options, Context(seed=seed, device="cpu", out=Path(), say=lambda line: None))


def train(recipe: TextRecipe, steps: int, lr: float = 3e-3) -> list[float]:
    parameters = [p for group in recipe.parameter_groups() for p in group["params"]]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(steps):
        batch = recipe.fetch(list(range(32 * step, 32 * step + 32)), 0, step)
        loss = recipe.loss(batch, generator, step, "model").total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def trained() -> TextRecipe:
    recipe = make()
    train(recipe, 40)
    return recipe


def test_captions_are_a_function_of_seed_and_index() -> None:
    options = CaptionOptions()
    first = [draw_caption(options, index) for index in range(300)]
    assert first == [draw_caption(options, index) for index in range(300)]
    assert first != [draw_caption(CaptionOptions(seed=1), index) for index in range(300)]
    assert 0.04 < first.count("") / 300 < 0.14


def test_captions_come_from_the_training_split() -> None:
    """Drawn captions that name all five attributes name no held-out combination; held-out ones only those."""

    def named(captions: list[str]) -> set[tuple[str, ...]]:
        unsaid = [len(values) for values in ATTRIBUTES.values()]
        rows = [
            row for row in labels(captions).tolist() if all(i < n for i, n in zip(row, unsaid, strict=True))
        ]
        return {tuple(values[i] for i, values in zip(row, ATTRIBUTES.values(), strict=True)) for row in rows}

    heldout = {tuple(combination) for combination in HELDOUT_COMBINATIONS}
    drawn = named([draw_caption(CaptionOptions(), index) for index in range(3000)])
    assert len(drawn) > 300
    assert not drawn & heldout
    asked = named(heldout_captions(600, seed=1))
    assert len(asked) > 80
    assert asked <= heldout


def test_labels() -> None:
    rows = labels(["a small red circle moves left on a gray background", "square", ""])
    assert rows.tolist() == [[0, 0, 0, 0, 1], [6, 1, 2, 7, 3], [6, 3, 2, 7, 3]]


def test_drawn_captions_are_clean_already() -> None:
    """So training may skip the cleaning that the encoder applies to prompts."""
    for index in range(400):
        text = caption(sample_scene(0, index), 0, index, is_picture=index % 3 == 0)
        assert clean_caption(text) == text


def test_loss_falls_and_repeats() -> None:
    losses = train(make(), 30)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert losses[:8] == train(make(), 8)
    assert losses[:8] != train(make(seed=1), 8)


def test_saved_encoder_reads_like_the_trained_one(trained: TextRecipe, tmp_path: Path) -> None:
    trained.save(tmp_path)
    encoder = TextEncoder.from_pretrained(tmp_path)
    texts = ["a red circle moves right", "a small blue square grows on a navy background", ""]
    saved = encoder.encode(texts)
    own, mask = trained._embed(texts)
    # The same directions, each channel scaled so that its standard deviation over tokens is 1.
    ratio = (saved.embeds[0, 1] / own[0, 1]).detach()
    length = mask.shape[1]
    torch.testing.assert_close(
        saved.embeds[:, :length][mask.bool()], (own * ratio)[mask.bool()], rtol=1e-3, atol=1e-4
    )
    assert not any("heads" in name or "queries" in name for name in encoder.model.state_dict())


def test_saved_outputs_have_unit_size(trained: TextRecipe, tmp_path: Path) -> None:
    trained.save(tmp_path)
    encoder = TextEncoder.from_pretrained(tmp_path)
    drawn = [text for index in range(300) if (text := draw_caption(OPTIONS.data, 5000 + index))]
    encoded = encoder.encode(drawn)
    std: Tensor = encoded.embeds[encoded.mask.bool()].std(0)
    assert ((std > 0.8) & (std < 1.25)).all()


def test_the_empty_prompt_is_valid_and_its_own(trained: TextRecipe, tmp_path: Path) -> None:
    trained.save(tmp_path)
    encoded = TextEncoder.from_pretrained(tmp_path).encode(["", "a red circle moves right", "a blue square"])
    assert encoded.mask.sum(1).tolist()[0] == 1
    assert encoded.embeds.isfinite().all()
    ends = [encoded.embeds[i, int(encoded.mask[i].sum()) - 1] for i in range(3)]
    assert (ends[0] - ends[1]).norm() > 1
    assert (ends[0] - ends[2]).norm() > 1


def test_finish_tells_the_held_out_accuracy() -> None:
    said: list[str] = []
    recipe = TextRecipe(OPTIONS, Context(seed=0, device="cpu", out=Path(), say=said.append))
    recipe.finish()
    assert len(said) == 1
    assert all(name in said[0] for name in ATTRIBUTES)


def test_shares_over_one_are_refused() -> None:
    options = TextOptions.model_validate({"data": {"empty": 0.5, "pictures": 0.6}})
    with pytest.raises(UserError, match=r"must be at most 1, got 1\.22"):
        make(options)


def test_recipe_offers_what_the_loop_asks_for(trained: TextRecipe) -> None:
    (phase,) = trained.phases()
    assert (phase.start, len(phase.buckets)) == (0, 2000)
    assert set(trained.modules()) == {"text_encoder", "heads"}
    wanted = sum(p.numel() for module in trained.modules().values() for p in module.parameters())
    assert sum(p.numel() for group in trained.parameter_groups() for p in group["params"]) == wanted


def test_the_loop_trains_and_resumes_it(tmp_path: Path) -> None:
    """Four steps at once equal two, a stop, and two more; the result loads."""
    from safetensors.torch import load_file

    from ea_runtime.training.options import TrainOptions
    from ea_runtime.training.run.loop import Trainer

    config = {"steps": 4, "batch_size": 8, "lr": 1e-3, "warmup": 2, "save_every": 2, "keep": 3}

    def run(out: Path, *, resume: bool) -> Path:
        return Trainer(make(), TrainOptions.model_validate(config), out, {"train": config}).run(resume=resume)

    whole = run(tmp_path / "whole", resume=False)
    TextEncoder.from_pretrained(tmp_path / "whole" / "checkpoint-2" / "model")
    parted = tmp_path / "parted"
    shutil.copytree(tmp_path / "whole", parted, ignore=shutil.ignore_patterns("final", "checkpoint-4"))
    first, second = (
        load_file(folder / "text_encoder" / "model.safetensors")
        for folder in (whole, run(parted, resume=True))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert TextEncoder.from_pretrained(whole).encode([""]).embeds.isfinite().all()
