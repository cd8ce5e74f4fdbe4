"""Training of a V3 folder: the recipe `dit` on known frames, and a LoRA, through the folder's own parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ea_data.draw.write import DrawConfig, write_set
from ea_dit.training import recipe
from ea_dit.training.options import DitOptions
from ea_dit.training.recipe import DitRecipe
from ea_lora.options import LoraOptions
from ea_lora.recipe import LoraRecipe
from ea_runtime.settings import validate
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Context
from ea_runtime.training.run.loop import Trainer


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "set"
    write_set(folder, DrawConfig(3, 2, seed=1, height=32, width=48, num_frames=16, num_continued=1))
    return folder


def data(drawn: Path, parts: Path, **changes: Any) -> dict[str, Any]:
    return {"path": str(drawn), "parts": str(parts), "num_frames": 16, "decode": "inline", **changes}


def context(out: Path) -> Context:
    return Context(1, "cpu", out, lambda line: None)


def dit(drawn: Path, folder: Path, out: Path, **changes: Any) -> DitRecipe:
    tables = {
        "stage": "finetune",
        "data": data(drawn, folder, **changes),
        "init": {"folder": str(folder / "transformer")},
    }
    return DitRecipe(validate(DitOptions, tables, "dit.toml"), context(out))


def test_pictures_of_half_of_the_batches_reach_the_model(
    drawn: Path, v3_source: Path, tmp_path: Path
) -> None:
    made = dit(drawn, v3_source, tmp_path)
    batches = [made.fetch([0, 1], seed, 0) for seed in range(40)]
    with_picture = [batch for batch in batches if batch.tensors["has_picture"]]
    assert 10 < len(with_picture) < 30
    losses = []
    for has_picture in (True, True, False):
        batch = with_picture[0]
        batch.tensors["has_picture"] = has_picture
        losses.append(float(made.loss(batch, torch.Generator().manual_seed(0), 0, "model").total.detach()))
    assert losses[0] == losses[1] != losses[2]


def test_the_cache_changes_nothing(drawn: Path, v3_source: Path, tmp_path: Path) -> None:
    losses = []
    for cache in ("make", "off"):
        made = dit(drawn, v3_source, tmp_path, cache=cache)
        found = []
        for seed, indices in ((1, [0, 1]), (2, [2, 5]), (3, [3, 4])):
            batch = made.fetch(indices, seed, 0)
            found.append(float(made.loss(batch, torch.Generator().manual_seed(0), 0, "model").total.detach()))
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_and_a_lora_train(
    drawn: Path, v3_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "PICTURE_PART", 1.0)
    options = TrainOptions(steps=2, batch_size=2, lr=1e-3, warmup=1, save_every=2, task="inpaint")
    Trainer(dit(drawn, v3_source, tmp_path / "a"), options, tmp_path / "a", {"train": {}}).run(resume=False)
    before = load_file(v3_source / "transformer" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "a" / "final" / "diffusion_pytorch_model.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {"pos_embed.proj.weight", "clip_projection.linear_1.weight"} <= changed
    tables = {"base": {"model": str(v3_source)}, "network": {"rank": 2}, "data": data(drawn, v3_source)}
    del tables["data"]["parts"]
    lora = LoraRecipe(validate(LoraOptions, tables, "lora.toml"), context(tmp_path / "b"))
    Trainer(lora, options, tmp_path / "b", {"train": {}}).run(resume=False)
    names = load_file(tmp_path / "b" / "final" / "lora.safetensors")
    assert any("clip_projection" in name for name in names)
