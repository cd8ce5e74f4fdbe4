"""`ea train lora` on the bundled model: resumes bit-exact, leaves the base alone, and its file does something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ea_lora import lora_info, read_lora, verify_lora
from ea_lora.adapters import base_tensors
from ea_lora.estimate import predict
from ea_lora.options import LoraOptions
from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.plugins.host import get_host
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Context
from ea_runtime.training.run.dry_run import make_plan
from ea_runtime.training.run.loop import Trainer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in V2's JSON, two of them of another size."""
    try:
        get_host().get("recipes", "dit")
        get_host().get("datasets", "easyanimate")
    except (MissingPackageError, UserError) as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("set")
    rows = []
    for number in range(6):
        width, height = (64, 64) if number < 4 else (128, 64)
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        row = {"file_path": f"{number}.png", "text": f"picture {number}, inkline", "type": "image"}
        rows.append({**row, "width": width, "height": height})
    (folder / "dataset.json").write_text(json.dumps(rows))
    return folder


def options(pictures: Path, **tables: Any) -> LoraOptions:
    network = {"rank": 2, "alpha": 1.0, "dropout": 0.1, "motion": False} | tables.pop("network", {})
    card = {"name": "style", "trigger_words": ("inkline",)} | tables.pop("card", {})
    return LoraOptions.model_validate(
        {"network": network, "card": card, "data": {"path": str(pictures)}, **tables}
    )


def make(
    pictures: Path, out: Path, *, dry_run: bool = False, said: list[str] | None = None, **tables: Any
) -> Any:
    from ea_lora.recipe import LoraRecipe

    how = tables.pop("context", {})
    context = Context(
        seed=1,
        device="meta" if dry_run else "cpu",
        out=out,
        say=(said if said is not None else []).append,
        dry_run=dry_run,
        **how,
    )
    return LoraRecipe(options(pictures, **tables), context)


def train(pictures: Path, out: Path, steps: int, *, resume: bool = False, **tables: Any) -> Path:
    how = TrainOptions(steps=4, batch_size=2, lr=1e-2, warmup=1, save_every=2, ema=0.5, schedule="constant")
    recipe = make(pictures, out, **tables)
    trainer = Trainer(recipe, how.model_copy(update={"steps": steps}), out, {"train": {}})
    return trainer.run(resume=resume)


def test_resumes_to_the_bit_and_the_file_does_something(pictures: Path, tmp_path: Path) -> None:
    whole = train(pictures, tmp_path / "whole", 4)
    train(pictures, tmp_path / "parts", 2)
    parts = train(pictures, tmp_path / "parts", 4, resume=True)
    one, other = (load_file(folder / "style.safetensors") for folder in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not any(".attn_temporal" in key or "_attn_temporal_" in key for key in one)

    info = lora_info(whole / "style.safetensors")
    assert (info["trigger_words"], info["base_model"], info["ranks"], info["alphas"]) == (
        ["inkline"],
        "tiny",
        [2],
        [1.0],
    )
    assert info["training"]["num_samples"] == 6
    assert info["training"]["steps"] == 4
    assert info["hash_matches"] is True
    report = verify_lora("tiny", whole / "style.safetensors")
    assert report.does_something
    assert not report.ignored
    assert report.probe["video"] > 0


def test_only_the_adapters_train_and_are_kept(pictures: Path, tmp_path: Path) -> None:
    recipe = make(pictures, tmp_path)
    before = {name: p.clone() for name, p in recipe.network.named_parameters() if not p.requires_grad}
    batch = recipe.fetch([0, 1], 0, 0)
    loss = recipe.loss(batch, torch.Generator().manual_seed(0), 0, "model")
    loss.total.backward()
    assert all(p.grad is None for p in recipe.network.parameters() if not p.requires_grad)
    parameters = [p for group in recipe.parameter_groups() for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in recipe.network.parameters() if p.requires_grad}
    assert all(p.grad is not None for p in parameters)
    torch.optim.SGD(parameters, lr=0.1).step()
    assert all(torch.equal(p, before[n]) for n, p in recipe.network.named_parameters() if n in before)
    size = sum(p.numel() for m in recipe.modules().values() for p in m.parameters())
    assert size < sum(p.numel() for p in recipe.network.parameters()) / 10


def test_pictures_fall_into_buckets(pictures: Path, tmp_path: Path) -> None:
    buckets = make(pictures, tmp_path).phases()[0].buckets
    assert {(bucket.height, bucket.width) for bucket in buckets} == {(64, 64), (64, 128)}


def test_the_text_encoder_on_request(pictures: Path, tmp_path: Path) -> None:
    recipe = make(pictures, tmp_path, network={"text": True})
    loss = recipe.loss(recipe.fetch([0, 1], 0, 0), torch.Generator().manual_seed(0), 0, "model")
    for (
        module
    ) in recipe.adapters.values():  # up starts at 0, so that down gets its first gradient a step later
        for name, parameter in module.named_parameters():
            if name.endswith("up.weight"):
                parameter.data.normal_(std=0.02)
    loss = recipe.loss(recipe.fetch([0, 1], 0, 0), torch.Generator().manual_seed(0), 0, "model")
    loss.total.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in recipe.adapters["lora_text"].parameters())
    recipe.save(tmp_path / "out")
    assert len(read_lora(tmp_path / "out" / "style.safetensors").of_part("text")) == len(
        recipe.adapters["lora_text"]
    )
    with pytest.raises(UserError, match=r"`network\.text` trains the text encoder, which `memory\.low_vram`"):
        make(pictures, tmp_path, network={"text": True}, memory={"low_vram": True})


def test_low_vram_gives_the_same_loss(pictures: Path, tmp_path: Path) -> None:
    def loss(**tables: Any) -> torch.Tensor:
        recipe = make(pictures, tmp_path, network={"dropout": 0.0}, **tables)
        assert not tables or not recipe.base.source.coder._loaded
        return recipe.loss(recipe.fetch([0, 1], 0, 0), torch.Generator().manual_seed(0), 0, "model").total

    low = {"low_vram": True, "offload_blocks": 4}
    assert torch.equal(loss(), loss(memory=low, context={"gradient_checkpointing": True}))
    with pytest.raises(UserError, match=r"needs `train\.gradient_checkpointing = true`"):
        loss(memory=low)


def test_a_dry_run_tells_the_memory(pictures: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        recipe = make(
            pictures, tmp_path, dry_run=True, context={"gradient_checkpointing": True, "dtype": "bf16"}
        )
        told = recipe.describe()
    assert "GB" in told["device, one sample a step"]["activations"]
    assert "stay free" in told["device, one sample a step"]["of a 24 GB card"]
    assert told["memory"]["activations of one sample"] > 0
    parts = predict(recipe.network, recipe.adapters, (1, 8, 8))
    real = make(pictures, tmp_path, context={"dtype": "bf16"})
    trained = {id(p) for module in real.modules().values() for p in module.parameters()}
    held = [t for t in (*real.network.parameters(), *real.network.buffers()) if id(t) not in trained]
    assert parts["frozen weights"] == sum(t.nbytes for t in held)
    assert parts["LoRA weights (fp32)"] == sum(
        t.nbytes for t in real.network.parameters() if id(t) in trained
    )
    assert "memory" not in make(pictures, tmp_path).describe()


def test_the_plan_counts_the_adapters_once(pictures: Path, tmp_path: Path) -> None:
    from ea_lora.recipe import LoraRecipe

    how = TrainOptions(steps=2, batch_size=2, lr=1e-2)
    rows = dict(
        make_plan(LoraRecipe, options(pictures), how, "lora", tmp_path / "run", "cpu").sections[
            "Memory of a process"
        ]
    )
    held = sum(t.nbytes for t in base_tensors(make(pictures, tmp_path).network))
    assert rows["frozen helpers"] == f"{held / 1e6:.2f} MB"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"base": {"model": "no/such/model"}}, "no/such/model"),
        ({"base": {"recipe": "unheard"}}, "unheard"),
        ({"network": {"include": ("nothing",)}}, "leave no layer of the denoiser to adapt"),
        ({"data": {"path": "nowhere"}}, "nowhere"),
    ],
)
def test_mistakes_are_one_line(pictures: Path, tmp_path: Path, tables: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text) as caught:
        make(pictures, tmp_path, **tables)
    assert "\n" not in str(caught.value)


def test_a_lora_is_trained_further_from_its_file(pictures: Path, tmp_path: Path) -> None:
    file = train(pictures, tmp_path / "first", 2) / "style.safetensors"
    said: list[str] = []
    recipe = make(pictures, tmp_path / "second", said=said, init={"lora": str(file)})
    assert any(line.startswith("start: ") and "style.safetensors" in line for line in said)
    recipe.save(tmp_path / "saved")
    one, other = load_file(file), load_file(tmp_path / "saved" / "style.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    further = train(pictures, tmp_path / "second", 2, init={"lora": str(file)}) / "style.safetensors"
    assert any(not torch.equal(one[key], value) for key, value in load_file(further).items())
    with pytest.raises(UserError, match=r"`network\.rank` must be 2, as in `init\.lora`"):
        make(pictures, tmp_path, init={"lora": str(file)}, network={"rank": 4})
    with pytest.raises(UserError, match=r"`init\.lora`: there is no LoRA file"):
        make(pictures, tmp_path, init={"lora": str(tmp_path / "none.safetensors")})


def test_trigger_words_that_cleaning_removes_are_told(pictures: Path, tmp_path: Path) -> None:
    said: list[str] = []
    make(pictures, tmp_path, said=said, card={"trigger_words": ("gr4ph1c", "inkline")})
    assert [line for line in said if "1 of 2 `card.trigger_words`: gr4ph1c" in line]
    said.clear()
    make(pictures, tmp_path, said=said)
    assert not [line for line in said if "trigger_words" in line]
