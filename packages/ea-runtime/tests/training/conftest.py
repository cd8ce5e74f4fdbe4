"""Fixtures for tests of the training loop: the toy recipe, runs of it, and a training set of drawn pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ea_runtime.plugins.host import Host, set_host
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Context
from ea_runtime.training.run.loop import Trainer

TOY = Path(__file__).parent / "toy_recipe.py"
SMALL = Path(__file__).parent / "small_vae.py"
TRAIN: dict[str, Any] = {
    "steps": 12,
    "batch_size": 4,
    "lr": 1e-2,
    "muon_lr": 1e-2,
    "warmup": 3,
    "ema": 0.9,
    "save_every": 4,
    "weight_decay": 0.01,
    "seed": 7,
}


@pytest.fixture(autouse=True)
def _leave_torch_alone(leave_torch_alone: None) -> None:
    """Every test here runs a training loop."""


@pytest.fixture(scope="session")
def toy_file() -> Path:
    """The toy recipe as a plugin file, for `--plugin`."""
    return TOY


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The toy recipe's module."""
    record = Host(files=[TOY], entry_points=False).get("recipes", "toy")

    return sys.modules[record.build().__module__]


@pytest.fixture
def make_trainer(toy: ModuleType, tmp_path: Path) -> Callable[..., Trainer]:
    """make_trainer(out="run", train={...}, toy={...}, data={...}, say=f): a run of the toy recipe, not yet started."""

    def make(
        out: str = "run",
        train: dict[str, Any] | None = None,
        say: Callable[[str], None] | None = None,
        **tables: Any,
    ) -> Trainer:
        options = TrainOptions(**{**TRAIN, **(train or {})})
        recipe_options = toy.ToyOptions(**tables)
        torch.manual_seed(options.seed)
        say = say or (lambda line: None)
        context = Context(options.seed, "cpu", tmp_path / out, say, dtype=options.dtype)
        config = {"train": options.model_dump(mode="json"), "data": recipe_options.data.model_dump()}
        return Trainer(toy.ToyRecipe(recipe_options, context), options, tmp_path / out, config, say)

    return make


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., Path]:
    """make_set(pictures=3, videos=2, frames=27, size=16): a set for small_vae.ArraySet: seeded noise in colours."""

    def make(name: str = "set", pictures: int = 3, videos: int = 2, frames: int = 27, size: int = 16) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(0)
        rows = []
        for index in range(pictures + videos):
            is_video = index >= pictures
            shape = (frames if is_video else 1, size, size, 3)
            np.save(folder / f"{index}.npy", rng.integers(0, 256, shape, dtype=np.uint8))
            kind = "video" if is_video else "image"
            rows.append({"file_path": f"{index}.npy", "text": f"clip {index}", "type": kind})
        (folder / "dataset.json").write_text(json.dumps(rows))
        return folder

    return make


@pytest.fixture(scope="session")
def _host_of_small_networks() -> Host:
    return Host(files=[SMALL], entry_points=False)


@pytest.fixture(scope="session")
def small(_host_of_small_networks: Host) -> ModuleType:
    """The module of small_vae.py."""
    record = _host_of_small_networks.get("vaes", "small-vae")
    return sys.modules[record.build().__module__]


@pytest.fixture
def small_host(_host_of_small_networks: Host) -> Host:
    """A host that knows the small networks and no installed package, as this process's host."""
    set_host(_host_of_small_networks)
    return _host_of_small_networks


@pytest.fixture
def parts(small_host: Host, tmp_path: Path) -> Path:
    """A model folder for `data.parts`: a small VAE, a text encoder and a tokenizer."""
    from transformers import T5Config, T5EncoderModel

    from ea_runtime.text.encoder import TextEncoder, train_tokenizer

    folder = tmp_path / "parts"
    torch.manual_seed(0)
    vae = small_host.get("vaes", "small-vae").build()()
    with torch.no_grad():
        vae.gain.copy_(torch.tensor([1.0, -0.5, 2.0, 0.25]))
    vae.save_pretrained(folder / "vae")
    tokenizer = train_tokenizer(["clip 0", "a longer caption of clip 1"], vocab_size=400)
    config = T5Config(vocab_size=400, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2)
    TextEncoder(T5EncoderModel(config), tokenizer).save_pretrained(folder)
    return folder
