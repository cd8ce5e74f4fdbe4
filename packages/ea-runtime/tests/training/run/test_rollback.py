"""Spikes and unusable samples: the loop's reaction to the guard and the budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ea_runtime.errors import UserError
from ea_runtime.training.run.checkpoints import checkpoints
from ea_runtime.training.run.loop import MAX_ROLLBACKS

Make = Callable[..., Any]


class Scripted:
    """A guard with scripted verdicts at given steps, once each or always. suspect: steps that it doubts."""

    def __init__(self, spikes: list[int], suspect: Sequence[int] = (), *, again: bool = False) -> None:
        self.spikes, self.suspect, self.again = list(spikes), list(suspect), again
        self.is_clean, self.is_rising, self.suspect_since = True, False, None
        self.steps: list[int] = []

    def check(self, step: int, loss: float, grad_norm: float, *_: Any) -> str:
        self.steps.append(step)
        self.is_clean = step not in self.suspect
        self.is_rising = not self.is_clean
        if step in self.spikes:
            if not self.again:
                self.spikes.remove(step)
            self.is_clean, self.suspect_since = False, max(0, step - 1)
            return "spike"
        return "ok" if abs(loss) < float("inf") else "skip"

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.is_clean, self.is_rising = True, False


def lines(run: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoint-{step}" / "state.safetensors")


def test_back_to_the_last_good_state_with_other_draws(make_trainer: Make, tmp_path: Path) -> None:
    said: list[str] = []
    train = {"save_every": 3, "keep": 9}
    make_trainer("plain", train=train).run(resume=False)
    trainer = make_trainer(train=train, say=said.append)
    trainer.guard = Scripted([7])
    trainer.run(resume=False)
    run, plain = tmp_path / "run", tmp_path / "plain"
    assert "the loss spiked at step 8; back to checkpoint-6 (rollback 1)" in said
    assert [line["step"] for line in lines(run)] == list(range(1, 13))
    assert [line["rollbacks"] for line in lines(run)] == [0] * 6 + [1] * 6
    assert [line["step"] for line in lines(run, "log-rollback-1.jsonl")] == [7, 8]
    before, after = weights(plain, 6), weights(run, 6)
    assert all(torch.equal(before[key], after[key]) for key in before)
    # the same samples in the same order, other draws
    losses = [(a["loss"], b["loss"]) for a, b in zip(lines(run), lines(plain), strict=True)]
    assert all(a == b for a, b in losses[:6])
    assert all(a != b for a, b in losses[6:])
    recipe: Any = trainer.recipe
    assert recipe.batches[6:8] == recipe.batches[8:10]


def test_a_rolled_back_run_resumes_to_the_bit(make_trainer: Make, tmp_path: Path) -> None:
    def make(out: str, spikes: list[int]) -> Any:
        trainer = make_trainer(out, train={"save_every": 3, "keep": 9})
        trainer.guard = Scripted(spikes)
        return trainer

    make("uncut", [4]).run(resume=False)
    trainer = make("cut", [4])
    one_step = trainer._one_step

    def dying(fetcher: Any) -> Any:
        if trainer.step == 8:
            raise MemoryError
        return one_step(fetcher)

    trainer._one_step = dying
    with pytest.raises(MemoryError):
        trainer.run(resume=False)
    resumed = make("cut", [])
    resumed.run(resume=True)
    assert resumed.rollbacks == 1
    one, other = weights(tmp_path / "uncut", 12), weights(tmp_path / "cut", 12)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_suspect_state_is_saved_later(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(train={"save_every": 3, "keep": 9})
    trainer.guard = Scripted([], suspect=[2, 3, 5])
    trainer.run(resume=False)
    assert [step for step, _ in checkpoints(tmp_path / "run")] == [0, 5, 7, 9, 12]


def test_a_suspect_end_goes_back(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(train={"save_every": 3, "keep": 9})
    trainer.guard = guard = Scripted([], suspect=[11])
    guard.load_state_dict = lambda state: guard.suspect.clear()
    trainer.run(resume=False)
    assert trainer.rollbacks == 1
    assert guard.steps[-4:] == [11, 9, 10, 11]


def test_a_signal_does_not_save_a_suspect_state(make_trainer: Make, tmp_path: Path) -> None:
    said: list[str] = []
    trainer = make_trainer(train={"save_every": 5}, toy={"sigterm": [6]}, say=said.append)
    trainer.guard = Scripted([], suspect=[6, 7, 8])
    with pytest.raises(KeyboardInterrupt):
        trainer.run(resume=False)
    assert [step for step, _ in checkpoints(tmp_path / "run")] == [0, 5]
    assert trainer.saved_step == 5
    assert said[-1] == "the state at step 8 is suspect and was not saved"


def test_it_goes_back_three_times_and_no_more(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(train={"save_every": 3})
    trainer.guard = Scripted([7], again=True)
    with pytest.raises(
        UserError, match=f"spiked again at step 8, after {MAX_ROLLBACKS} rollbacks; .*-6 is the last good"
    ):
        trainer.run(resume=False)
    assert trainer.rollbacks == MAX_ROLLBACKS
    assert {line["rollbacks"] for line in lines(tmp_path / "run")} == {0, 3}


def test_a_spike_before_the_first_save_goes_back_to_the_start(make_trainer: Make, tmp_path: Path) -> None:
    make_trainer("plain").run(resume=False)
    trainer = make_trainer()
    trainer.guard = Scripted([1])
    trainer.run(resume=False)
    assert [line["rollbacks"] for line in lines(tmp_path / "run")] == [1] * 12


def test_a_spike_of_the_data_is_found_by_the_real_guard(make_trainer: Make, tmp_path: Path) -> None:
    train = {"steps": 70, "batch_size": 16, "save_every": 10, "keep": 9, "lr": 1e-3, "muon_lr": 0.0}
    trainer = make_trainer(train=train, toy={"spike": list(range(50, 70))}, data={"images": 0})
    trainer.run(resume=False)
    assert trainer.rollbacks == 1
    assert [line["rollbacks"] for line in lines(tmp_path / "run")].count(0) in (30, 40)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(
    ("dtype", "remedy"), [("fp32", "lower `train.lr`"), ("bf16", "set `train.dtype` to fp32")]
)
def test_steps_that_stay_infinite_end_the_run(
    dtype: str, remedy: str, enabled: bool, make_trainer: Make, tmp_path: Path
) -> None:
    train = {"steps": 60, "save_every": 10, "dtype": dtype, "guard": {"enabled": enabled}}
    said: list[str] = []
    trainer = make_trainer(train=train, toy={"nan": list(range(15, 60))}, say=said.append)
    with pytest.raises(
        UserError, match=f"^10 steps in a row .* 25: the loss is not finite in {dtype}; {remedy}"
    ):
        trainer.run(resume=False)
    run = tmp_path / "run"
    assert trainer.rollbacks == 0
    assert [line for line in said if "skipped" in line] == [
        f"step 16 is skipped: the loss is not finite in {dtype}"
    ]
    assert not any("spiked" in line for line in said)
    assert len(lines(run)) == 15 + 10
    newest = checkpoints(run)[-1][0]
    assert newest == 10  # later states were in doubt
    assert all(value.isfinite().all() for value in weights(run, newest).values() if value.is_floating_point())


def test_a_skipped_step_in_fp16_names_the_loss_scale(make_trainer: Make) -> None:
    said: list[str] = []
    make_trainer(train={"dtype": "fp16"}, toy={"nan": [6]}, say=said.append).run(resume=False)
    (line,) = [one for one in said if "skipped" in one]
    # 65536, halved once though the step was repeated for diagnosis
    assert line == "step 7 is skipped: the loss is not finite in fp16, the loss scale falls to 32768"


def test_a_turn_that_is_not_finite_is_left_out(make_trainer: Make, tmp_path: Path) -> None:
    """The first turn's update stands; the critic's is skipped, and the step counts as skipped."""
    data = {"critic": True, "critic_start": 2}
    trainer = make_trainer(toy={"nan_critic": [6]}, data=data)
    trainer.run(resume=False)
    skipped = [line["step"] for line in lines(tmp_path / "run") if line["skipped"]]
    assert skipped == [7]
    line = lines(tmp_path / "run")[6]
    assert line["loss"] is not None
    assert line["loss_critic"] is None
    assert [line["grad_norm_critic"] == 0 for line in lines(tmp_path / "run")] == [True] * 2 + [False] * 10


def test_bad_samples_are_counted_and_weigh_nothing(make_trainer: Make, tmp_path: Path) -> None:
    """A part without usable samples contributes nothing: the mean is over the samples really used."""
    bad = [1, 3, 8, 9, 10, 11]
    train = {"bad_share": 1.0, "batch_size": 8, "accumulate": 4, "steps": 8, "ema": 0.0}
    data = {"dropout": False, "bad": bad, "images": 0}
    make_trainer("with", train=train, data=data).run(resume=False)
    for line in lines(tmp_path / "with"):
        assert line["samples"] == 8
        assert line["used"] + line["bad"] == 8
    trainer = make_trainer("one part", train={**train, "accumulate": 1}, data=data)
    trainer.run(resume=False)
    pairs = zip(lines(tmp_path / "with"), lines(tmp_path / "one part"), strict=True)
    assert all(a["loss"] == pytest.approx(b["loss"], abs=1e-6) for a, b in pairs)
    assert len((tmp_path / "with" / "quarantine.jsonl").read_text().splitlines()) == len(bad)
    assert trainer.budget.state_dict()["used"] == 8 * 8 * 10 / 16


def test_too_many_bad_samples_end_the_run(make_trainer: Make, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"2 files cannot be used .*`train.bad_share` 0\.1 of 16 samples allows 1"
    ):
        make_trainer(train={"bad_share": 0.1, "batch_size": 16}, data={"bad": [3, 9], "images": 0}).run(
            resume=False
        )


def test_a_set_of_bad_samples_alone_updates_nothing(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(train={"bad_share": 1.0}, data={"bad": list(range(16))})
    before = trainer.modules["network"].last.weight.detach().clone()
    trainer.run(resume=False)
    assert torch.equal(before, trainer.modules["network"].last.weight)
    assert {line["loss"] for line in lines(tmp_path / "run")} == {None}
    assert {line["used"] for line in lines(tmp_path / "run")} == {0}
