"""NaNs and spikes injected into real runs of a small denoiser: each must be handled, and clean runs left alone.

Eighteen injections in six runs, thirty in ten under EA_FULL=1: non-finite steps, weights that are corrupted at once,
and weights corrupted a little more with every step, which makes the loss climb as a plain DiT's does (0.05 -> 0.2 ->
1.0).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.training.data.draws import normal, uniform
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Batch, Context, Loss, Phase, RecipeDefaults
from ea_runtime.training.run.checkpoints import checkpoints
from ea_runtime.training.run.guard import Guard
from ea_runtime.training.run.loop import Trainer

FULL = os.environ.get("EA_FULL") == "1"
STEPS = 330
#: (step, kind) of the three injections of each run.
RUNS: list[list[tuple[int, str]]] = [
    [
        (90 + 7 * n, "nan"),
        (160 + 5 * n, ("climbs", "at once")[n % 2]),
        (270 + 3 * n, ("at once", "climbs", "bad gradient")[n % 3]),
    ]
    for n in range(10 if FULL else 6)  # six: each pair of the later kinds
]


class Denoiser(RecipeDefaults):
    """Learns the noise in x_t, samples of 8 numbers in two clusters, as a DiT does: its loss depends on t.

    faults: step -> kind. Each happens once: after a rollback the run passes it.
    """

    def __init__(self, context: Context, faults: list[tuple[int, str]]) -> None:
        self.context = context
        self.faults = dict(faults)
        self.climbing: list[int] = []
        self.last = -1
        self.network = nn.Sequential(
            nn.Linear(9, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 8)
        )
        generator = torch.Generator().manual_seed(5)
        centres = torch.randn(2, 8, generator=generator)
        self.data = centres[torch.arange(256) % 2] + 0.1 * torch.randn(256, 8, generator=generator)
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        self.signal = torch.cumprod(1 - betas, 0).float()

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "name": "all"}]

    def phases(self) -> list[Phase]:
        return [Phase(0, ["image"] * 128 + ["video"] * 128)]

    def fetch(self, indices: list[int], seed: int, step: int) -> Batch:
        return Batch(indices, {"x": self.data[indices]})

    def loss(self, batch: Batch, generator: torch.Generator, step: int, turn: str) -> Loss:
        kind = self.faults.pop(step, "")
        if step <= self.last:  # after a rollback the fault is over
            self.climbing = []
        self.last = step
        if kind == "at once":
            self._spoil(0.3)
        if kind == "climbs":
            self.climbing = list(range(step, step + 12))
        if step in self.climbing:
            self.climbing.remove(step)
            self._spoil(0.06)
        each, timesteps = self.each(batch.tensors["x"], batch.indices, generator)
        total = each.mean()
        if kind == "nan":
            total = total * math.nan
        if kind == "bad gradient":
            total = total + (next(self.network.parameters()) * 0).abs().sqrt().sum()
        return Loss(total, {}, each.detach() * (math.nan if kind == "nan" else 1.0), timesteps)

    def each(self, x: Tensor, indices: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        timesteps = (uniform(generator, indices) * 1000).long()
        noise = normal(generator, indices, (8,))
        signal = self.signal[timesteps][:, None]
        noisy = signal.sqrt() * x + (1 - signal).sqrt() * noise
        output = self.network(torch.cat([noisy, timesteps[:, None] / 500 - 1], dim=1))
        return (output - noise).square().mean(1), timesteps

    def quality(self) -> float:
        """The loss over the whole set with fixed draws."""
        with torch.no_grad():
            return float(self.each(self.data, list(range(256)), torch.Generator().manual_seed(0))[0].mean())

    @torch.no_grad()
    def _spoil(self, size: float) -> None:
        """Adds noise to the weights, as a bad step would."""
        generator = torch.Generator().manual_seed(9)
        for parameter in self.network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.clone() for k, v in self.network.state_dict().items()}, folder / "model.safetensors")


Start = Callable[..., Any]


@pytest.fixture(scope="module")
def start_in() -> Start:
    def start(
        folder: Path, faults: list[tuple[int, str]], seed: int = 0, steps: int = STEPS, **train: Any
    ) -> Any:
        table = {
            "batch_size": 16,
            "lr": 3e-3,
            "warmup": 20,
            "ema": 0.9,
            "save_every": 10,
            "keep": 12,
            **train,
        }
        options = TrainOptions(steps=steps, seed=seed, **table)
        torch.manual_seed(seed)
        out = folder / f"run-{seed}"
        recipe: Any = Denoiser(Context(seed=seed, device="cpu", out=out, say=lambda line: None), faults)
        return Trainer(recipe, options, out, {"train": options.model_dump(mode="json")})

    return start


@pytest.fixture
def start(start_in: Start, tmp_path: Path) -> Start:
    return partial(start_in, tmp_path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def judge(trainer: Any, faults: list[tuple[int, str]], limit: float) -> list[str]:
    """Faults of a finished run: injections that were not handled in time, and poisoned states."""
    wrong: list[str] = []
    given_up = {
        n: lines(path) for n in (1, 2, 3) if (path := trainer.out / f"log-rollback-{n}.jsonl").exists()
    }
    every = [*lines(trainer.out / "log.jsonl"), *(line for dropped in given_up.values() for line in dropped)]
    skipped = {line["step"] - 1 for line in every if line["skipped"]}
    spikes = [step for step, kind in faults if kind in ("at once", "climbs")]
    for step, kind in faults:
        if kind in ("nan", "bad gradient") and step not in skipped:
            wrong.append(f"{kind} at {step} was not skipped")
    wrong += [f"step {step} was skipped" for step in skipped - {step for step, _ in faults}]
    if len(given_up) != len(spikes):
        wrong.append(f"{len(given_up)} rollbacks for {len(spikes)} spikes")
    for step, dropped in zip(spikes, given_up.values(), strict=False):
        if not step <= dropped[-1]["step"] - 1 < step + 10:
            wrong.append(f"the spike at {step} was found at {dropped[-1]['step'] - 1}")
        if dropped[0]["step"] > step + 1:
            wrong.append(f"the spike at {step} went back to {dropped[0]['step'] - 1}, which is poisoned")
    recipe: Any = trainer.recipe
    for number, folder in checkpoints(trainer.out):
        if number >= 60:
            weights = load_file(folder / "state.safetensors")
            recipe.network.load_state_dict(
                {k.removeprefix("weight/network/"): v for k, v in weights.items() if k.startswith("weight/")}
            )
            if not recipe.quality() < limit:
                wrong.append(f"checkpoint-{number} is poisoned: {recipe.quality():.3f}")
    return wrong


@pytest.fixture(scope="module")
def limit(start_in: Start, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Upper bound for unpoisoned states of these runs: 1.5 times the loss of a clean run at a fifth of its steps."""
    trainer = start_in(tmp_path_factory.mktemp("clean"), [], seed=99, steps=60)
    trainer.run(resume=False)
    recipe: Any = trainer.recipe
    return 1.5 * recipe.quality()


@pytest.mark.slow
def test_injections_are_handled(start: Start, limit: float) -> None:
    assert len({(faults[1][1], faults[2][1]) for faults in RUNS}) == 6
    for seed, faults in enumerate(RUNS):
        trainer = start(faults, seed)
        trainer.run(resume=False)
        assert judge(trainer, faults, limit) == [], f"run {seed}: {faults}"
        assert trainer.step == STEPS


@pytest.mark.slow
def test_nothing_is_done_to_clean_runs(start: Start) -> None:
    """2,000 steps in total; ten times that with EA_FULL=1."""
    for seed in range(50, 60 if FULL else 51):
        trainer = start([], seed, steps=2000, save_every=500)
        trainer.run(resume=False)
        assert trainer.rollbacks == 0
        assert not any(line["skipped"] for line in lines(trainer.out / "log.jsonl"))
        assert checkpoints(trainer.out)[-1][0] == 2000


class MeanOnly(Guard):
    """A twin: alarms at 16 times the usual mean loss of a batch, the least that gives no false alarm."""

    def check(self, step: int, loss: float, grad_norm: float, *_: Any, **__: Any) -> Any:
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            return "skip"
        self.usual = 0.98 * getattr(self, "usual", loss) + 0.02 * loss
        return "spike" if loss > 16 * self.usual else "ok"


class Careless(Guard):
    """A twin: finds spikes, but calls every state clean and suspects no step before the alarm."""

    @property
    def is_clean(self) -> bool:
        return True

    @property
    def suspect_since(self) -> int | None:
        return None


@pytest.mark.parametrize("twin", ["off", "mean only", "careless"])
def test_a_guard_that_is_broken_is_noticed(twin: str, start: Start, limit: float) -> None:
    faults = [(105, "climbs")]
    trainer = start(faults, 3, steps=140, save_every=1, guard={"enabled": twin != "off"})
    if twin == "mean only":
        trainer.guard = MeanOnly(trainer.options.guard)
    if twin == "careless":
        trainer.guard = Careless(trainer.options.guard)
    with suppress(UserError):  # rolls back to corrupted states until its rollbacks are used up
        trainer.run(resume=False)
    wrong = judge(trainer, faults, limit)
    assert wrong
    assert any("poisoned" in line for line in wrong)


def test_that_run_is_handled_by_ours(start: Start, limit: float) -> None:
    trainer = start([(105, "climbs")], 3, steps=140, save_every=1)
    trainer.run(resume=False)
    assert judge(trainer, [(105, "climbs")], limit) == []
