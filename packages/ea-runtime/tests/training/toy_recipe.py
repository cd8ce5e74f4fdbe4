"""A local plugin with a recipe `toy`: a small network with everything that makes resuming hard.

A channels-last kernel, a matrix, a frozen layer, a branch that only some samples use, a buffer that training changes,
dropout, and on request a critic with a separate turn, phases, and unusable files. Faults are requested in [toy].
Loaded like a `--plugin` file.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import RecipeRecord
from ea_runtime.training.data.draws import normal, uniform
from ea_runtime.training.recipe import Batch, Context, Loss, Phase, RecipeDefaults
from ea_runtime.training.update.precision import DTYPES, run_in


class Faults(BaseModel):
    """Steps (from 0) at which something happens, before that step's loss is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nan: list[int] = []
    nan_critic: list[int] = []
    bad_gradient: list[int] = []
    spike: list[int] = []  # only until the first rollback, recognised by the draws
    sigterm: list[int] = []
    sigint: list[int] = []
    sigkill: list[int] = []
    rank: int = 0  # the process that the signals reach
    full_disk: bool = False
    worker: dict[str, int] = {}  # "kill", "user" or "fault" -> the step at which fetching fails that way


class Data(BaseModel):
    """random: noise for each sample. images: number of samples with an image next to the vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    random: bool = True
    dropout: bool = True
    images: int = 6
    bad: list[int] = []  # samples that cannot be used
    phase_at: int = 0  # a second phase, without the last 4 samples and with batches of 3
    critic: bool = False
    critic_start: int = 0  # its turn is skipped before this step


class ToyOptions(BaseModel):
    """The tables of a `toy` config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Data = Data()
    toy: Faults = Faults()


class ToyNetwork(nn.Module):
    """Vectors (B, 6) and, for some, images (B, 4, 5, 5) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.first = nn.Linear(6, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.dropout = nn.Dropout(0.2)
        self.kernel = nn.Conv2d(4, 16, 3)
        self.kernel.weight.data = self.kernel.weight.data.contiguous(memory_format=torch.channels_last)
        self.last = nn.Linear(16, 3)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, vectors: Tensor, images: Tensor | None) -> Tensor:
        self.seen += len(vectors)
        x = torch.tanh(self.first(self.frozen(vectors)))
        if images is not None:
            x = x + self.kernel(images.to(memory_format=torch.channels_last)).mean((2, 3))
        for block in self.blocks:
            x = x + 0.1 * torch.tanh(block(x))
        return self.last(self.dropout(x))


class ToyRecipe(RecipeDefaults):
    """16 samples, of which the first `images` come with an image: two buckets."""

    options_model = ToyOptions

    def __init__(self, options: ToyOptions, context: Context) -> None:
        self.options = options
        self.context = context
        self.network = ToyNetwork()
        self.critic = nn.Linear(3, 1)
        if not options.data.dropout:
            self.network.dropout.p = 0.0
        generator = torch.Generator().manual_seed(5)
        self.vectors = torch.randn(16, 6, generator=generator)
        self.images = torch.randn(16, 4, 5, 5, generator=generator)
        self.wanted = self.vectors[:, :3].sin()
        self.batches: list[list[int]] = []
        self.sheets: list[int] = []

    def modules(self) -> dict[str, nn.Module]:
        critic = {"critic": self.critic} if self.options.data.critic else {}
        return {"network": self.network, **critic}

    def averaged(self) -> list[str]:
        return ["network"]

    def turns(self) -> list[str]:
        return ["model", "critic"] if self.options.data.critic else ["model"]

    def parameter_groups(self) -> list[dict[str, Any]]:
        network = self.network
        muon = [network.kernel.weight, network.first.weight]
        rest = [p for p in network.parameters() if all(p is not m for m in muon)]
        groups = [
            {"params": muon, "kind": "muon"},
            {"params": rest, "kind": "adamw", "lr_scale": 0.5, "name": "slow"},
        ]
        if self.options.data.critic:
            groups.append({"params": list(self.critic.parameters()), "turn": "critic"})
        return groups

    def phases(self) -> list[Phase]:
        data = self.options.data
        buckets = ["image" if i < data.images else "vector" for i in range(16)]
        later = Phase(data.phase_at, [*buckets[:12], *[None] * 4], 3)
        return [Phase(0, buckets)] + [later] * (data.phase_at > 0)

    def fetch(self, indices: list[int], seed: int, step: int) -> Batch:
        worker = self.options.toy.worker
        if worker.get("kill") == step:
            os.kill(os.getpid(), signal.SIGKILL)
        if worker.get("user") == step:
            raise UserError("`data.path` is gone")
        if worker.get("fault") == step:
            raise ZeroDivisionError("a fault")
        good = [i for i in indices if i not in self.options.data.bad]
        shift = [np.random.default_rng(np.random.SeedSequence([seed, i])).normal(0, 0.1) for i in good]
        vectors = self.vectors[good]
        if self.options.data.random and good:
            vectors = vectors + torch.tensor(shift, dtype=torch.float32)[:, None]
        tensors = {"vectors": vectors, "images": self.images[good], "wanted": self.wanted[good]}
        return Batch(good, tensors, [(i, f"{i}.mp4", "it is cut") for i in indices if i not in good])

    def loss(self, batch: Batch, generator: torch.Generator, step: int, turn: str) -> Loss:
        assert len(batch)
        self.batches.append(batch.indices)
        faults = self.options.toy
        if int(os.environ.get("RANK", "0")) == faults.rank:
            for name in ("sigterm", "sigint", "sigkill"):
                if step in getattr(faults, name):
                    os.kill(os.getpid(), getattr(signal, name.upper()))
        vectors = batch.tensors["vectors"]
        if self.options.data.random:
            vectors = vectors + 0.1 * normal(generator, batch.indices, (6,))
            vectors = vectors + 0.1 * uniform(generator, batch.indices)[:, None]
        images = batch.tensors["images"] if batch.indices[0] < self.options.data.images else None
        if turn == "critic":
            return self._critic_loss(vectors, images, batch, step)
        output = self._run(vectors, images)
        each = (output - batch.tensors["wanted"]).square().mean(1)
        total = each.mean()
        if self.options.data.critic:
            total = total - 0.01 * self.critic(output).mean()
        if step in faults.bad_gradient:
            total = total + (self.network.last.bias * 0).abs().sqrt().sum()  # 0 with a gradient of 0 / 0
        if step in faults.nan:
            total, each = total * float("nan"), each * float("nan")
        if step in faults.spike and self.first_draw(step, generator):
            total, each = total * 100, each * 100
        return Loss(total, {"mean": float(output.detach().mean())}, each.detach())

    def _run(self, vectors: Tensor, images: Tensor | None) -> Tensor:
        dtype = DTYPES[self.context.dtype]
        images = images if images is None else images.to(dtype)
        return run_in(self.network, dtype, vectors.to(dtype), images).float()

    def first_draw(self, step: int, generator: torch.Generator) -> bool:
        """True if the generator is the one that the step had before any rollback."""
        from ea_runtime.training.run.step import seed_of

        return generator.initial_seed() == seed_of(self.context.seed, step, 0, 0)

    def _critic_loss(self, vectors: Tensor, images: Tensor | None, batch: Batch, step: int) -> Loss:
        assert not self.network.first.weight.requires_grad or step < 0
        with torch.no_grad():
            output = self._run(vectors, images)
        if step < self.options.data.critic_start:
            return Loss(torch.zeros(()), {"gap": 0.0})
        gap = self.critic(output).mean() - self.critic(batch.tensors["wanted"]).mean()
        if step in self.options.toy.nan_critic:
            gap = gap * float("nan")
        return Loss(gap + 0.1 * self.critic.weight.square().sum(), {"gap": float(gap.detach())})

    def sample_sheet(self, step: int) -> np.ndarray:
        self.sheets.append(step)
        shown = self.network.last.weight.detach()
        assert not torch.is_grad_enabled()
        return np.full((8, 12, 3), int(shown.abs().sum()) % 256, dtype=np.uint8)

    def finish(self) -> None:
        self.context.say("finished")

    def save(self, folder: Path) -> None:
        if self.options.toy.full_disk and (self.context.out / "checkpoint-0").exists():
            raise OSError(28, "No space left on device")
        folder.mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().clone().contiguous() for key, value in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"_class_name": "ToyNetwork"}))


@hookimpl
def ea_recipes() -> list[RecipeRecord]:
    return [RecipeRecord("toy", "for tests", lambda: ToyRecipe)]
