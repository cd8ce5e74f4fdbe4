"""N + M steps equal N steps, a kill, and M steps: weights, averages, optimisers, losses and order, bit-exact."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ea_runtime.training.recipe import Batch
from ea_runtime.training.run.loop import Trainer

Make = Callable[..., Any]
CLOCK = ("seconds", "wait", "memory")
FULL = os.environ.get("EA_FULL") == "1"
CUTS = (1, 2, 3, 4, 5, 6, 7, 9, 10, 11)
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two turns": {"data": {"critic": True, "critic_start": 3}},
    "phases": {"data": {"phase_at": 6}},
    "parts": {"train": {"accumulate": 3, "batch_size": 7}},
    "all of it, adam, bf16": {
        "train": {"accumulate": 2, "batch_size": 5, "optimizer": "adam", "muon_lr": 0.0, "dtype": "bf16"},
        "data": {"critic": True, "phase_at": 5, "bad": [3, 9, 10]},
    },
    "fp16": {"train": {"dtype": "fp16"}, "data": {"critic": True}},
}


def tables(name: str, **train: Any) -> dict[str, Any]:
    run = RUNS[name]
    return {**run, "train": {"save_every": 3, "keep": 9, "bad_share": 1.0, **run.get("train", {}), **train}}


def what_is_left(run: Path) -> dict[str, Any]:
    """Every tensor and number of every checkpoint, and the log without values from a clock."""
    found: dict[str, Any] = {}
    for folder in (*sorted(run.glob("checkpoint-*")), run / "final"):
        for path in sorted(folder.rglob("*.safetensors")):
            found |= {f"{folder.name}/{path.name}/{key}": value for key, value in load_file(path).items()}
        if folder.name != "final":
            found[f"{folder.name}/state.json"] = json.loads((folder / "state.json").read_text())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found["log"] = [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]
    return found


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    assert one.keys() == other.keys()
    return [
        key
        for key, value in one.items()
        if not (torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key])
    ]


def cut(trainer: Any, step: int) -> None:
    """Runs until that step and ends in its last turn like a killed process: nothing more is saved."""
    whole, last, one_step = trainer.recipe.loss, trainer.turns[-1].turn, trainer.stepper.one_step

    def dying(batch: Batch, generator: torch.Generator, at: int, turn: str) -> Any:
        if at == step and turn == last:
            raise MemoryError
        return whole(batch, generator, at, turn)

    def ending(at: int, *args: Any, **kwargs: Any) -> Any:
        result = one_step(at, *args, **kwargs)
        if at == step:  # none of its samples was usable
            raise MemoryError
        return result

    trainer.recipe.loss = dying
    trainer.stepper.one_step = ending
    with pytest.raises(MemoryError):
        trainer.run(resume=True)


@pytest.mark.parametrize("name", RUNS)
def test_cut_anywhere(name: str, make_trainer: Make, tmp_path: Path) -> None:
    """Cuts at ten steps (three for most kinds of run unless EA_FULL=1), then two cuts in one run; 0 workers."""
    make_trainer("uncut", **tables(name)).run(resume=False)
    wanted = what_is_left(tmp_path / "uncut")
    assert len(wanted["log"]) == 12
    for steps in (*([cut] for cut in (CUTS if FULL or name == "plain" else (2, 5, 9))), [2, 8]):
        out = f"cut {steps}"
        for step in steps:
            cut(make_trainer(out, **tables(name)), step)
        make_trainer(out, **tables(name)).run(resume=True)
        assert differing(wanted, what_is_left(tmp_path / out)) == []


@pytest.mark.parametrize("name", ["plain", "all of it, adam, bf16"])
def test_workers_change_nothing(name: str, make_trainer: Make, tmp_path: Path) -> None:
    """2 against 0, uncut and cut, and resuming with another number."""
    make_trainer("none", **tables(name)).run(resume=False)
    wanted = what_is_left(tmp_path / "none")
    make_trainer("two", **tables(name, workers=2)).run(resume=False)
    assert differing(wanted, what_is_left(tmp_path / "two")) == []
    for number, (step, first, then) in enumerate([(1, 2, 2), (5, 2, 2), (6, 2, 0), (8, 0, 2), (11, 2, 2)]):
        out = f"cut {number}"
        cut(make_trainer(out, **tables(name, workers=first)), step)
        make_trainer(out, **tables(name, workers=then)).run(resume=True)
        assert differing(wanted, what_is_left(tmp_path / out)) == []


def test_the_runs_differ_where_they_should(make_trainer: Make, tmp_path: Path) -> None:
    """The comparison notices a changed draw, so it does not compare empty sets."""
    make_trainer("one", **tables("plain")).run(resume=False)
    make_trainer("other", **tables("plain", seed=8)).run(resume=False)
    one, other = what_is_left(tmp_path / "one"), what_is_left(tmp_path / "other")
    assert "log" in differing(one, other)
    assert sum("state.safetensors/optimizer" in key for key in differing(one, other)) > 20


@pytest.mark.parametrize("lost", ["rollbacks", "guard", "scaler", "phase", "fetch seed"])
def test_what_else_a_resume_could_lose(
    lost: str, make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deliberately broken twins of the loop are caught by the same comparison."""
    from ea_runtime.training.data.order import PhaseOrder
    from ea_runtime.training.run import loop
    from ea_runtime.training.run.guard import Guard

    name = {"scaler": "fp16", "phase": "phases"}.get(lost, "plain")
    make_trainer("uncut", **tables(name)).run(resume=False)
    cut(make_trainer("cut", **tables(name)), 7)
    trainer = make_trainer("cut", **tables(name))
    if lost == "rollbacks":
        monkeypatch.setattr(
            Trainer, "rollbacks", property(lambda self: 1, lambda self, value: None), raising=False
        )
    elif lost == "guard":
        monkeypatch.setattr(Guard, "load_state_dict", lambda self, values: None)
    elif lost == "scaler":
        monkeypatch.setattr(torch.amp.GradScaler, "load_state_dict", lambda self, values: None)
    elif lost == "phase":
        whole = PhaseOrder.draw
        monkeypatch.setattr(PhaseOrder, "draw", lambda self, step: whole(self, max(0, step - 6)))
    else:
        monkeypatch.setattr(loop, "seed_of", lambda *numbers: 1)
    trainer.run(resume=True)
    assert differing(what_is_left(tmp_path / "uncut"), what_is_left(tmp_path / "cut"))
