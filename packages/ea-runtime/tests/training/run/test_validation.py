"""Validation: held-out samples on fixed draws, and a run that is the same with and without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ea_runtime.errors import UserError
from ea_runtime.training.recipe import Batch, Loss

Make = Callable[..., Any]
TABLE = {"every": 3, "samples": 5, "draws": 2, "bins": 4}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def validated(run: Path) -> dict[int, float]:
    return {line["step"]: line["val_loss"] for line in lines(run) if "val_loss" in line}


def weights(run: Path) -> dict[str, torch.Tensor]:
    paths = [*sorted(run.glob("checkpoint-*/**/*.safetensors")), run / "final" / "model.safetensors"]
    found = {f"{p.relative_to(run)} {name}": value for p in paths for name, value in load_file(p).items()}
    assert len(found) > 50
    return found


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


def test_it_measures_and_changes_nothing(make_trainer: Make, tmp_path: Path) -> None:
    """Dropout, a buffer that a pass changes, averages: all are as in a run that validates at its end only."""
    often = make_trainer("often", train={"validation": TABLE})
    often.run(resume=False)
    make_trainer("seldom", train={"validation": TABLE | {"every": 100}}).run(resume=False)
    assert list(validated(tmp_path / "often")) == [3, 6, 9, 12]
    assert list(validated(tmp_path / "seldom")) == [12]
    assert differing(weights(tmp_path / "often"), weights(tmp_path / "seldom")) == []
    assert validated(tmp_path / "often")[12] == validated(tmp_path / "seldom")[12]
    # the twin: a run that trains on the held-out samples too is another run
    make_trainer("all").run(resume=False)
    assert differing(weights(tmp_path / "often"), weights(tmp_path / "all"))


@pytest.mark.parametrize("lost", ["nothing", "buffers"])
def test_a_pass_that_is_not_taken_back_is_noticed(
    lost: str, make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ea_runtime.training.run import validation

    trainer = make_trainer(train={"validation": TABLE})
    before = {name: value.clone() for name, value in trainer.recipe.network.state_dict().items()}
    if lost == "buffers":
        monkeypatch.setattr(validation, "_measuring", lambda modules: nullcontext())
    trainer.validator.measure(0)
    after = trainer.recipe.network.state_dict()
    assert differing(before, after) == ([] if lost == "nothing" else ["seen"])
    assert trainer.recipe.network.training


def test_a_resumed_run_has_the_same_figures(make_trainer: Make, tmp_path: Path) -> None:
    make_trainer("whole", train={"validation": TABLE}).run(resume=False)
    with pytest.raises(KeyboardInterrupt):
        make_trainer("cut", train={"validation": TABLE}, toy={"sigterm": [4]}).run(resume=False)
    make_trainer("cut", train={"validation": TABLE}).run(resume=True)
    assert validated(tmp_path / "cut") == validated(tmp_path / "whole")
    assert (
        differing(
            {name: value for name, value in weights(tmp_path / "whole").items() if "final" in name},
            {name: value for name, value in weights(tmp_path / "cut").items() if "final" in name},
        )
        == []
    )


def test_draws_are_the_same_each_time_and_samples_are_held_out(make_trainer: Make) -> None:
    trainer = make_trainer(train={"validation": TABLE}, data={"phase_at": 6})
    held = set(trainer.validator.held)
    assert len(held) == 5
    assert not any(held & set(trainer.order.draw(step).indices) for step in range(12))
    one = trainer.validator.measure(0)
    trainer.recipe.batches.clear()
    assert trainer.validator.measure(0) == one
    assert sorted(i for batch in trainer.recipe.batches for i in batch) == sorted([*held, *held])
    trainer.recipe.batches.clear()
    trainer.validator.measure(7)  # the second phase leaves the last four samples out
    assert {i for batch in trainer.recipe.batches for i in batch} == {i for i in held if i < 12}
    with torch.no_grad():  # the twin: other weights, other figures
        trainer.recipe.network.last.bias.add_(1)
    assert trainer.validator.measure(0) != one


def test_each_bin_of_timesteps_has_its_mean(make_trainer: Make) -> None:
    trainer = make_trainer(train={"validation": TABLE | {"draws": 1}})

    def known(batch: Batch, generator: torch.Generator, step: int, turn: str) -> Loss:
        timesteps = torch.tensor([250 * (index % 3) for index in batch.indices])
        return Loss(torch.zeros(()), {}, timesteps / 1000 + torch.tensor(batch.indices) * 0, timesteps)

    trainer.recipe.loss = known
    found = trainer.validator.measure(0)
    assert found["val_loss"] == 0
    places = sorted({250 * (index % 3) for index in trainer.validator.held})
    assert len(places) > 1
    assert {name: value for name, value in found.items() if name != "val_loss"} == pytest.approx(
        {f"val_loss_t{place:03}": place / 1000 for place in places}
    )


@pytest.mark.parametrize("critic", [False, True])
def test_recipes_of_several_turns_may_use_gradients(critic: bool, make_trainer: Make) -> None:
    """The VAE's weighs its discriminator's term by them."""
    trainer = make_trainer(train={"validation": TABLE}, data={"critic": critic})
    seen, whole = set(), trainer.recipe.loss

    def watched(*args: Any) -> Loss:
        seen.add(torch.is_grad_enabled())
        return whole(*args)

    trainer.recipe.loss = watched
    trainer.validator.measure(0)
    assert seen == {critic}
    assert all(parameter.grad is None for parameter in trainer.recipe.network.parameters())


def test_more_than_half_of_a_set_is_not_held_out(make_trainer: Make) -> None:
    with pytest.raises(
        UserError, match=r"`train\.validation\.samples` must be half of the set's 16 .* got 9"
    ):
        make_trainer(train={"validation": TABLE | {"samples": 9}})
