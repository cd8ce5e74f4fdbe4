"""Fixtures of ea-vae's tests: small VAEs of each mode, a drawn set, recipes on it, and the golden data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ea_vae.plugin
from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import DatasetRecord
from ea_runtime.settings import validate
from ea_runtime.testing import host_with
from ea_runtime.training.data.dataset import BadSample, Bucket, Item, Sample, SetOptions, draw_start
from ea_runtime.training.recipe import Batch, Context, Loss
from ea_vae import AutoencoderKLMagvit
from ea_vae.training.recipe import VaeRecipe
from ea_vae.training.recipe_options import VaeOptions

SMALL = {"ch": 4, "ch_mult": (1, 1, 2, 2), "layers_per_block": 1, "norm_num_groups": 2}
SLICE = {"slice_compression_vae": True, "mini_batch_encoder": 8, "mini_batch_decoder": 2}

#: the recipes' model: small enough to train in a test
MODEL = {
    "ch": 4,
    "ch_mult": [1, 1, 2, 2],
    "layers_per_block": 1,
    "norm_num_groups": 1,
    "scaling_factor": 0.18215,
}
#: discriminators for frames of 16x16
SMALL_DISCRIMINATOR = {"channels": 4, "num_layers": 1, "clip_channels": [4, 8]}
PLAIN = {"perceptual": 0.0, "adversarial": 0.0}


class SquareSet:
    """Six pictures and three clips of 10 frames, 16x16: a coloured square that moves. `path` "bad": two are bad."""

    def __init__(self, options: SetOptions) -> None:
        self.options = options
        of_kind = {"both": range(9), "pictures": range(6), "videos": range(6, 9)}[options.kinds]
        self.numbers = list(of_kind)[: options.limit or None]
        self.items: Sequence[Item] = [
            Item(Path(f"/set/{number}"), "a square", number >= 6, 16, 16) for number in self.numbers
        ]

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int) -> Item:
        return self.items[index]

    def buckets(self, size: int | None = None, num_frames: int | None = None) -> list[Bucket]:
        side = size or self.options.size or 16
        longest = min(10, num_frames or self.options.num_frames)
        return [
            Bucket("video", longest, side, side) if item.is_video else Bucket("image", 1, side, side)
            for item in self.items
        ]

    def starts(self, index: int, bucket: Bucket) -> range:
        return range(1 if bucket.kind == "image" else 11 - bucket.num_frames)

    def read(self, index: int, start: int, bucket: Bucket) -> np.ndarray:
        number = self.numbers[index]
        if self.options.path == "bad" and number in (1, 7):
            raise BadSample(str(number), "it holds no frames")
        rng = np.random.default_rng(number)
        dark, bright = rng.integers(0, 120, 3), rng.integers(130, 256, 3)
        frames = np.empty((10, 32, 32, 3), dtype=np.uint8)
        frames[:] = dark
        for t, frame in enumerate(frames):
            frame[number : number + 6, t % 8 : t % 8 + 6] = bright
        return frames[start : start + bucket.num_frames, : bucket.height, : bucket.width].copy()

    def sample(self, index: int, seed: int, bucket: Bucket) -> Sample:
        start = draw_start(self.starts(index, bucket), index, seed)
        return Sample(self.read(index, start, bucket), "a square", start)


class SquarePlugin:
    @hookimpl
    def ea_datasets(self) -> list[DatasetRecord]:
        return [DatasetRecord("squares", "a drawn set", lambda: SquareSet)]


@pytest.fixture
def said() -> list[str]:
    """The lines that recipes reported."""
    return []


@pytest.fixture
def make(tmp_path: Path, said: list[str]) -> Iterator[Callable[..., VaeRecipe]]:
    """make(data={...}, loss={...}, ...): a recipe on squares; pictures, L1 and MSE only by default."""

    def build_recipe(context: dict[str, Any] | None = None, **tables: Any) -> VaeRecipe:
        data = {"path": "good", "format": "squares", "num_frames": 1, "kinds": "pictures"} | tables.pop(
            "data", {}
        )
        if "folder" not in tables.get("init", {}):
            tables.setdefault("model", MODEL)
        tables["loss"] = PLAIN | {"mse": 3.0} | tables.get("loss", {})
        tables.setdefault("discriminator", SMALL_DISCRIMINATOR)
        options = validate(VaeOptions, {"data": data, **tables}, "vae.toml")
        torch.manual_seed(3)
        given = {"seed": 3, "device": "cpu", "out": tmp_path / "run", "say": said.append} | (context or {})
        return VaeRecipe(options, Context(**given))

    with host_with(SquarePlugin(), ea_vae.plugin):
        yield build_recipe


@pytest.fixture
def one_step() -> Callable[..., Loss]:
    """one_step(recipe, indices, seed=, step=, turn=): a batch's loss for a turn, as the loop asks for it."""

    def ask(recipe: VaeRecipe, indices: list[int], seed: int = 0, step: int = 0, turn: str = "vae") -> Loss:
        batch: Batch = recipe.fetch(indices, seed, step)
        return recipe.loss(batch, torch.Generator().manual_seed(seed), step, turn)

    return ask


@pytest.fixture
def adam() -> Callable[..., list[SimpleNamespace]]:
    """adam(recipe, steps, rate=, batch=): a plain loop over a recipe's turns; gives each step's figures and totals."""

    def run(recipe: VaeRecipe, steps: int, rate: float = 3e-3, batch: int = 3) -> list[SimpleNamespace]:
        optimisers = {
            turn: torch.optim.Adam(
                [p for group in recipe.parameter_groups() if group["turn"] == turn for p in group["params"]],
                rate,
            )
            for turn in recipe.turns()
        }
        lines = []
        members = [i for i, b in enumerate(recipe.phases()[0].buckets) if b == recipe.phases()[0].buckets[0]]
        for step in range(steps):
            taken = recipe.fetch(
                [members[(step * batch + i) % len(members)] for i in range(batch)], step, step
            )
            figures: dict[str, float] = {}
            for turn, optimiser in optimisers.items():
                found = recipe.loss(taken, torch.Generator().manual_seed(step), step, turn)
                figures |= {turn: float(found.total.detach())} | found.figures
                if found.total.requires_grad:
                    optimiser.zero_grad()
                    found.total.backward()
                    optimiser.step()
            lines.append(SimpleNamespace(**figures))
        return lines

    return run


def build(**settings: object) -> AutoencoderKLMagvit:
    """A seeded VAE with all parameters random, norms and biases too, so that no branch is dead."""
    torch.manual_seed(0)
    vae = AutoencoderKLMagvit(**{**SMALL, **settings})
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vae.eval()


@pytest.fixture
def make_vae() -> Callable[..., AutoencoderKLMagvit]:
    """make_vae(**config): a small seeded VAE with these settings."""
    return build


@pytest.fixture
def magvit() -> AutoencoderKLMagvit:
    """A small VAE in MagViT mode, 9 frames <-> 3 latent frames."""
    return build()


@pytest.fixture
def sliced() -> AutoencoderKLMagvit:
    """A small VAE in slice mode, 8 frames <-> 2 latent frames."""
    return build(**SLICE)


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    """Seeded standard normal tensors: noise(*shape, seed=0)."""

    def draw(*shape: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return draw
