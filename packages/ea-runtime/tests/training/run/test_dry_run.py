"""`--dry-run`: its report agrees with the run that follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from ea_runtime.errors import UserError
from ea_runtime.models.memory.kept import kept_for_backward
from ea_runtime.training.data.dataset import Bucket
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Batch, Context, Loss, Phase, RecipeDefaults
from ea_runtime.training.run.dry_run import RunPlan, make_plan, shapes_only
from ea_runtime.training.run.loop import Trainer

TRAIN: dict[str, Any] = {"steps": 12, "batch_size": 4, "lr": 1e-2, "muon_lr": 1e-2, "warmup": 3, "seed": 7}


def plan_of(cls: Any, options: Any, out: Path, train: dict[str, Any] | None = None) -> RunPlan:
    return make_plan(cls, options, TrainOptions(**{**TRAIN, **(train or {})}), "toy", out, "cpu")


def rows(plan: RunPlan, section: str) -> dict[str, str]:
    return dict(plan.sections[section])


def test_the_plan_of_the_toy(toy: ModuleType, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    options = toy.ToyOptions(data={"critic": True})
    plan = plan_of(toy.ToyRecipe, options, tmp_path / "run", {"processes": 2, "accumulate": 2})
    assert torch.equal(state, torch.get_rng_state())
    assert list(tmp_path.iterdir()) == []
    run = rows(plan, "Run")
    assert run["writes to"] == f"{tmp_path / 'run'} (new; this plan writes nothing)"
    assert run["global batch"] == "4 samples = 2 processes x 2 micro-batches of 1"
    data = rows(plan, "Data")
    assert data["samples"] == "16"
    assert data["epochs"] == "2.40 (5 steps each)"
    assert (data["bucket vector"], data["bucket image"]) == ("10 samples", "6 samples")
    parameters = rows(plan, "Parameters")
    assert parameters["trained"] == "1,303 of 1,345 (96.9%)"
    assert parameters["model: slow"] == "adamw, 0.001 M parameters, peak rate 0.005"
    assert parameters["critic: critic 2"] == "adamw, 0.000 M parameters, peak rate 0.01"


def test_phases_and_small_buckets(toy: ModuleType, tmp_path: Path) -> None:
    options = toy.ToyOptions(data={"phase_at": 6, "images": 2})
    plan = plan_of(toy.ToyRecipe, options, tmp_path / "run")
    first, second = rows(plan, "Data, phase 1"), rows(plan, "Data, phase 2")
    assert (first["steps"], second["steps"]) == ("0 to 6", "6 to 12")
    assert second["samples"] == "12, 4 left out"
    assert first["small buckets"] == "1 never fill a batch of 4; theirs are smaller"
    assert "activations, phase 2" in rows(plan, "Memory of a process")


def test_memory_is_what_the_run_holds(
    toy: ModuleType, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Weights, gradients, moments and averages, compared with a trainer's tensors after some steps."""
    plan = rows(plan_of(toy.ToyRecipe, toy.ToyOptions(), tmp_path / "run"), "Memory of a process")
    trainer = make_trainer()
    trainer.run(resume=False)

    def size(tensors: Any) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    weights = [*trainer.modules["network"].parameters(), *trainer.modules["network"].buffers()]
    assert plan["weights"] == kilobytes(size(weights))
    assert plan["gradients"] == kilobytes(size(p.grad for turn in trainer.turns for p in turn.parameters))
    assert plan["averages"] == kilobytes(size(trainer.averages["network"].averages.values()))
    moments = [
        value
        for turn in trainer.turns
        for optimizer in turn.optimizers
        for table in optimizer.state.values()
        for value in table.values()
        if isinstance(value, torch.Tensor) and value.ndim
    ]
    assert plan["optimiser"] == kilobytes(size(moments))


def kilobytes(size: int) -> str:
    return f"{size / 1000:.2f} kB"


class Wide(RecipeDefaults):
    """Two linear layers with a tanh in between, samples of 1,000 numbers; the loss reads values as recipes do."""

    def __init__(self, options: Any, context: Context) -> None:
        self.device = context.device
        self.network = nn.Sequential(nn.Linear(1000, 500), nn.Tanh(), nn.Linear(500, 1))
        self.network.to(context.device)
        self.options = options
        self.fetched: list[int] = []

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "name": "all"}]

    def phases(self) -> list[Phase]:
        return [Phase(0, [Bucket("image", 1, 8, 8), None, *[Bucket("video", 9, 8, 16)] * 4])]

    def fetch(self, indices: list[int], seed: int, step: int) -> Batch:
        self.fetched += indices
        if self.options == "bad":
            return Batch([], {}, [(i, f"{i}.mp4", "cut") for i in indices])
        return Batch(indices, {"x": torch.zeros(len(indices), 1000)})

    def loss(self, batch: Batch, generator: torch.Generator, step: int, turn: str) -> Loss:
        if self.options == "odd":
            raise KeyError("x")
        output = self.network(batch.tensors["x"].to(self.device) + torch.randn(1, generator=generator))
        figures = {"mean": float(output.detach().mean()), "most": max(output.detach().flatten().tolist())}
        return Loss(output.square().mean(), figures, output.detach()[:, 0].cpu())

    def save(self, folder: Path) -> None:
        raise AssertionError


def test_activations_are_those_that_autograd_keeps(tmp_path: Path) -> None:
    """For a micro-batch of the largest bucket, the count equals that of a real backward pass."""
    plan = plan_of(Wide, None, tmp_path / "run", {"batch_size": 3, "muon_lr": 0.0})
    told = rows(plan, "Memory of a process")["activations"]
    recipe = Wide(None, Context(seed=0, device="cpu", out=tmp_path, say=print))
    known = {p.untyped_storage()._cdata for p in recipe.network.parameters()}
    with kept_for_backward() as kept:
        recipe.loss(recipe.fetch([2, 3, 4], 0, 0), torch.Generator(), 0, "model")
    size = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in known)
    assert told == kilobytes(size)
    assert size >= 3 * (1000 + 500) * 4
    data = rows(plan, "Data")
    assert data["pictures, videos"] == "1, 4"
    assert data["samples"] == "5, 1 left out"
    assert data["bucket video 16x8, 9 frames"] == "4 samples"


@pytest.mark.parametrize(
    ("options", "words"),
    [("odd", "not counted (KeyError: 'x')"), ("bad", "not counted: none of 4 files of bucket video")],
)
def test_what_cannot_be_counted_is_said(options: str, words: str, tmp_path: Path) -> None:
    memory = rows(plan_of(Wide, options, tmp_path / "run"), "Memory of a process")
    assert memory["activations"].startswith(words)
    assert memory["weights"] == "2.00 MB"


def test_a_recipes_own_memory_is_taken_where_ours_cannot_be_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "memory": {"weights": 1, "activations of one sample": 1_000_000, "computing copy": 5_000},
        "stage": "align",
    }
    monkeypatch.setattr(Wide, "describe", lambda self: told)
    plan = plan_of(Wide, "odd", tmp_path / "run")
    memory = rows(plan, "Memory of a process")
    assert memory["activations"] == "4.00 MB"
    assert memory["copy to compute with"] == "5.00 kB"
    assert rows(plan, "Recipe") == {"stage": "align"}


def test_no_weights_are_loaded(tmp_path: Path) -> None:
    """A terabyte of parameters costs nothing."""

    class Huge(Wide):
        def __init__(self, options: Any, context: Context) -> None:
            super().__init__(options, context)
            self.network = nn.Sequential(nn.Linear(1000, 500_000_000), nn.Linear(500_000_000, 1))

    plan = plan_of(Huge, None, tmp_path / "run", {"muon_lr": 0.0})
    assert rows(plan, "Memory of a process")["weights"] == "2004.00 GB"


def test_a_recipe_with_nothing_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wide, "parameter_groups", lambda self: [])
    with pytest.raises(UserError, match="leaves nothing to train"):
        plan_of(Wide, None, tmp_path / "run")


def test_networks_have_shapes_only(small_host: Any, parts: Path) -> None:
    """`load_network` reads headers and compares them."""
    from ea_runtime.training.networks import load_network

    cls = small_host.get("vaes", "small-vae").build()
    real = load_network(cls, str(parts / "vae"), "vae")
    with shapes_only():
        network = load_network(cls, str(parts / "vae"), "vae")
    assert network.gain.is_meta
    assert network.gain.shape == real.gain.shape
    assert not real.gain.is_meta
