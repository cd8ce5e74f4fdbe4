"""A local plugin with a recipe `toy`: a small network with one of each kind of trouble for a loop that resumes.

A channels-last kernel, a matrix, a frozen layer, a branch that only some samples use, a buffer that training
changes, and dropout. Faults are asked for in [toy]. Loaded as `--plugin` files are.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file
from torch import Tensor, nn

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import RecipeRecord
from ea_runtime.training.recipe import Context


class Faults(BaseModel):
    """Steps (from 0) at which something happens, before that step's loss is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nan: list[int] = []
    bad_gradient: list[int] = []
    sigterm: list[int] = []
    sigint: list[int] = []
    sigkill: list[int] = []
    rank: int = 0  # the process that the signals reach
    full_disk: bool = False


class Noise(BaseModel):
    """`random`: noise from the generator, and dropout. `images`: samples with an image beside the vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    random: bool = True
    images: int = 6


class ToyOptions(BaseModel):
    """Tables of a `toy` config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Noise = Noise()
    toy: Faults = Faults()


class ToyNetwork(nn.Module):
    """(B, 6) and, of some, images (B, 4, 5, 5) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.first = nn.Linear(6, 16)
        self.dropout = nn.Dropout(0.2)
        self.kernel = nn.Conv2d(4, 16, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.last = nn.Linear(16, 3)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, vectors: Tensor, images: Tensor | None) -> Tensor:
        self.seen += len(vectors)
        x = torch.tanh(self.first(self.frozen(vectors)))
        if images is not None:
            x = x + self.kernel(images.to(memory_format=torch.channels_last)).mean((2, 3))
        return self.last(self.dropout(x))


class ToyRecipe:
    """16 samples, of which the first `images` come with an image: two buckets."""

    options_model = ToyOptions

    def __init__(self, options: ToyOptions, context: Context) -> None:
        self.options = options
        self.context = context
        self.network = ToyNetwork()
        if not options.data.random:
            self.network.dropout.p = 0.0
        generator = torch.Generator().manual_seed(5)
        self.vectors = torch.randn(16, 6, generator=generator)
        self.images = torch.randn(16, 4, 5, 5, generator=generator)
        self.wanted = self.vectors[:, :3].sin()
        self.batches: list[list[int]] = []

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def parameter_groups(self) -> list[dict[str, Any]]:
        network = self.network
        muon = [network.kernel.weight, network.first.weight]
        rest = [p for p in network.parameters() if all(p is not m for m in muon)]
        return [{"params": muon, "kind": "muon"}, {"params": rest, "kind": "adamw", "lr_scale": 0.5}]

    def buckets(self) -> list[str]:
        return ["image" if i < self.options.data.images else "vector" for i in range(16)]

    def loss(
        self, indices: list[int], generator: torch.Generator, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        self.batches.append(indices)
        faults = self.options.toy
        if int(os.environ.get("EA_RANK", "0")) == faults.rank:
            for name in ("sigterm", "sigint", "sigkill"):
                if step in getattr(faults, name):
                    os.kill(os.getpid(), getattr(signal, name.upper()))
        vectors = self.vectors[indices]
        if self.options.data.random:
            vectors = vectors + 0.1 * torch.randn(vectors.shape, generator=generator)
        with_images = indices[0] < self.options.data.images
        output = self.network(vectors, self.images[indices] if with_images else None)
        loss = (output - self.wanted[indices]).square().mean()
        if step in faults.bad_gradient:
            loss = loss + (self.network.last.bias * 0).abs().sqrt().sum()  # 0 with a gradient of 0 / 0
        if step in faults.nan:
            loss = loss * float("nan")
        return loss, {"mean": float(output.detach().mean())}

    def finish(self) -> None:
        self.context.say("finished")

    def save(self, folder: Path) -> None:
        if self.options.toy.full_disk:
            raise OSError(28, "No space left on device")
        folder.mkdir(parents=True, exist_ok=True)
        state = {key: value.clone().contiguous() for key, value in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"_class_name": "ToyNetwork"}))


@hookimpl
def ea_recipes() -> list[RecipeRecord]:
    return [RecipeRecord("toy", "for tests", lambda: ToyRecipe)]
