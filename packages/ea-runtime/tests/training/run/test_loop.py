"""The training loop: its results, its files, and bit-exact resuming after a cut."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Batch
from ea_runtime.training.run import loop, state
from ea_runtime.training.run import step as step_file
from ea_runtime.training.run.checkpoints import checkpoints, is_complete
from ea_runtime.training.run.loop import Trainer
from ea_runtime.training.run.run_folder import RunLog
from ea_runtime.training.update import optimizers
from ea_runtime.training.update.muon import MuonAdamW
from ea_runtime.training.update.optimizers import rate

Make = Callable[..., Any]
CLOCK = ("seconds", "wait", "memory")


def log(run: Path) -> list[dict[str, Any]]:
    """The log's lines without values from a clock."""
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in whole_log(run)]


def whole_log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def tensors(run: Path, step: int) -> dict[str, Tensor]:
    """The contents of a checkpoint: weights, averages, optimiser, buffers."""
    return load_file(run / f"checkpoint-{step}" / "state.safetensors")


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [key for key in one if not torch.equal(one[key], other[key])]


def cut(trainer: Any, step: int) -> None:
    """Runs until that step begins and ends there like a killed process: nothing more is saved."""
    whole = trainer.recipe.loss

    def dying(batch: Batch, generator: torch.Generator, at: int, turn: str) -> Any:
        if at == step:
            raise MemoryError
        return whole(batch, generator, at, turn)

    trainer.recipe.loss = dying
    with pytest.raises(MemoryError):
        trainer.run(resume=True)


@pytest.fixture
def uncut(make_trainer: Make, tmp_path: Path) -> Path:
    """The folder of a run of 12 steps, kept at every 4."""
    make_trainer("uncut", train={"keep": 9}).run(resume=False)
    return tmp_path / "uncut"


def test_what_a_run_leaves(uncut: Path, toy: ModuleType) -> None:
    assert sorted(path.name for path in uncut.iterdir()) == [
        "checkpoint-0",
        "checkpoint-12",
        "checkpoint-4",
        "checkpoint-8",
        "config.toml",
        "final",
        "log.jsonl",
        "run.html",
    ]
    lines = log(uncut)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[0].keys() == {
        "step",
        "loss",
        "mean",
        "lr",
        "grad_norm",
        "samples",
        "used",
        "bad",
        "skipped",
        "rollbacks",
    }
    assert all(0 <= line["wait"] <= line["seconds"] and line["memory"] > 10 for line in whole_log(uncut))
    assert sum(line["samples"] for line in lines[:10]) == 2 * 16  # 5 batches per epoch: 4, 2 and 4, 4, 2
    assert lines[0]["lr"] == pytest.approx(1e-2 / 3)  # warm-up of 3 steps
    assert lines[2]["lr"] == pytest.approx(1e-2)
    assert lines[11]["lr"] < 5e-4  # the cosine's end
    # `final` and the model in the last checkpoint are the averages
    last = tensors(uncut, 12)
    final = load_file(uncut / "final" / "model.safetensors")
    assert is_complete(uncut / "final")
    assert torch.equal(final["last.weight"], last["average/network/last.weight"])
    assert not torch.equal(final["last.weight"], last["weight/network/last.weight"])
    assert not differing(final, load_file(uncut / "checkpoint-12" / "model" / "model.safetensors"))
    torch.manual_seed(7)
    start = toy.ToyNetwork().state_dict()
    assert torch.equal(final["frozen.weight"], start["frozen.weight"])
    assert not torch.equal(final["kernel.weight"], start["kernel.weight"])


@pytest.mark.parametrize("step", [2, 4, 5, 7, 8, 11])
def test_resumed_is_uncut_to_the_bit(step: int, make_trainer: Make, uncut: Path, tmp_path: Path) -> None:
    """Cut between saves, before one and right after one; the log has the same lines too."""
    cut(make_trainer("cut", train={"keep": 9}), step)
    trainer = make_trainer("cut", train={"keep": 9})
    trainer.run(resume=True)
    assert trainer.recipe.batches[0] == make_trainer("other").order.draw(step // 4 * 4).indices
    for at in (4, 8, 12):
        assert differing(tensors(uncut, at), tensors(tmp_path / "cut", at)) == []
    assert log(uncut) == log(tmp_path / "cut")
    final = load_file(uncut / "final" / "model.safetensors")
    assert differing(final, load_file(tmp_path / "cut" / "final" / "model.safetensors")) == []


def test_the_optimiser_is_laid_out_as_before(make_trainer: Make) -> None:
    """Channels last, though files hold contiguous tensors."""
    trainer = make_trainer()
    trainer.run(resume=False)
    resumed = make_trainer()
    resumed._open(True)
    kernel = resumed.modules["network"].kernel.weight
    assert kernel.stride() == (36, 1, 12, 4)
    for one in (trainer, resumed):
        momentum = one.turns[0].optimizers[0].state[one.modules["network"].kernel.weight]["momentum"]
        assert momentum.stride() == kernel.stride()


def test_cut_twice_with_accumulation_and_another_interval(
    make_trainer: Make, uncut: Path, tmp_path: Path
) -> None:
    """The save interval changes nothing; micro-batches change rounding, and still resume bit-exact."""
    every_step = {"save_every": 1, "keep": 9}
    cut(make_trainer("cut", train=every_step), 3)
    cut(make_trainer("cut", train=every_step), 9)
    make_trainer("cut", train=every_step).run(resume=True)
    assert differing(tensors(uncut, 12), tensors(tmp_path / "cut", 12)) == []
    parts = {"accumulate": 3, "batch_size": 7}
    make_trainer("parts", train=parts).run(resume=False)
    cut(make_trainer("cut parts", train=parts), 6)
    make_trainer("cut parts", train=parts).run(resume=True)
    assert differing(tensors(tmp_path / "parts", 12), tensors(tmp_path / "cut parts", 12)) == []


@pytest.mark.parametrize("lost", ["seed", "averages", "optimizer", "zero gradients"])
def test_what_a_resume_could_lose_is_noticed(
    lost: str, make_trainer: Make, uncut: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deliberately broken twins of the loop: the comparison above catches each of them."""
    cut(make_trainer("cut", train={"keep": 9}), 5)
    trainer = make_trainer("cut", train={"keep": 9})
    if lost == "seed":
        monkeypatch.setattr(step_file, "seed_global", lambda seed: None)  # dropout draws on
    elif lost == "averages":
        monkeypatch.setattr(loop.WeightAverage, "load_state_dict", lambda self, values: None)
    elif lost == "optimizer":
        monkeypatch.setattr(MuonAdamW, "load_state_dict", lambda self, values: None)
    else:
        monkeypatch.setattr(optimizers.torch, "zeros_like", lambda parameter: None)
    trainer.run(resume=True)
    broken = differing(tensors(uncut, 12), tensors(tmp_path / "cut", 12))
    assert broken


def test_the_first_rate_and_every_schedule() -> None:
    def rates(**train: Any) -> list[float]:
        options = TrainOptions(**{"steps": 10, "batch_size": 4, "lr": 1.0, **train})
        return [rate(options, step) for step in range(10)]

    assert rates(warmup=0, schedule="constant") == [1.0] * 10
    assert rates(warmup=2, schedule="linear") == pytest.approx(
        [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    )
    cosine = rates(warmup=2, schedule="cosine", final_lr=0.1)
    assert cosine[2] == 1.0
    assert cosine[2:] == sorted(cosine[2:], reverse=True)
    assert cosine[9] > 0.1
    assert rates(warmup=50)[9] == pytest.approx(10 / 50)


def test_auto_dtype_is_resolved_before(make_trainer: Make) -> None:
    trainer = make_trainer()
    options = trainer.options.model_copy(update={"dtype": "auto"})
    with pytest.raises(ValueError, match="must be resolved"):
        Trainer(trainer.recipe, options, trainer.out, {})


def test_a_disk_that_fills_up_is_told_and_nothing_is_lost(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a save, a log line or a sheet; then the run resumes bit-exact."""
    make_trainer("uncut", train={"sample_every": 4}).run(resume=False)
    trainer, saves = make_trainer("cut", train={"sample_every": 4}), iter(range(100))

    def full(folder: Path, **state: Any) -> None:
        if next(saves) == 2:
            (folder / "state.safetensors").write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_state(folder, **state)

    save_state = loop.save_state
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", full)
        with pytest.raises(UserError) as caught:
            trainer.run(resume=False)
    last = trainer.saved_step
    assert last
    assert str(caught.value) == (
        f"{str(trainer.out)!r} cannot be written: No space left on device (os error 28); saved is step {last} of "
        f"{trainer.options.steps}: make room there and continue with --resume"
    )
    assert [step for step, _ in checkpoints(trainer.out)][-1] == last
    assert not list(trainer.out.glob(".*"))

    for place in ("log", "sheet"):
        trainer = make_trainer("cut", train={"sample_every": 4})
        with monkeypatch.context() as patch:
            if place == "log":
                patch.setattr(trainer.folder, "open_log", lambda: RunLog(Path("/dev/full")))
            else:
                patch.setattr("PIL.Image.Image.save", no_space)
            with pytest.raises(UserError, match=r"No space left on device; saved is step \d+ of"):
                trainer.run(resume=True)
    make_trainer("cut", train={"sample_every": 4}).run(resume=True)
    assert differing(tensors(tmp_path / "uncut", 12), tensors(tmp_path / "cut", 12)) == []


def no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_muon_off_and_rates_of_groups(make_trainer: Make) -> None:
    kinds = [(g["kind"], g["peak"]) for g in make_trainer().turns[0].groups]
    assert kinds == [("muon", 1e-2), ("adamw", 5e-3)]
    kinds = [(g["kind"], g["peak"]) for g in make_trainer(train={"muon_lr": 0.0}).turns[0].groups]
    assert kinds == [("adamw", 1e-2), ("adamw", 5e-3)]


def test_a_step_that_is_not_finite_is_skipped(make_trainer: Make, tmp_path: Path) -> None:
    """Loss or gradient: weights, averages and optimiser stay unchanged, and the run continues.

    The pass that is done again to explain it leaves no trace in buffers.
    """
    faults = {"nan": [4], "bad_gradient": [8]}
    trainer = make_trainer(train={"save_every": 5}, toy=faults)
    states, one_step = [], trainer.stepper.one_step

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = one_step(*args, **kwargs)
        parameters = dict(trainer.modules["network"].named_parameters())
        optimizer = trainer.turns[0].optimizers[0].state.values()
        states.append(
            [t.clone() for t in (*parameters.values(), *trainer.averages["network"].averages.values())]
        )
        states[-1] += [value.clone() for kept in optimizer for value in kept.values()]
        return result

    trainer.stepper.one_step = watched
    trainer.run(resume=False)
    run = tmp_path / "run"
    alike = [all(map(torch.equal, a, b)) for a, b in pairwise(states)]
    assert [step for step, is_alike in enumerate(alike, 2) if is_alike] == [5, 9]
    assert [step for step, _ in checkpoints(run)] == [
        10,
        12,
    ]  # at 5 the state was in doubt: saved at 6, then pruned
    lines = log(run)
    assert [line["step"] for line in lines if line["skipped"]] == [5, 9]
    assert lines[4]["loss"] is None  # JSON knows no NaN
    assert lines[8]["loss"] is not None
    assert lines[8]["grad_norm"] is None
    final = load_file(run / "final" / "model.safetensors")
    assert all(value.isfinite().all() for value in final.values() if value.is_floating_point())
    assert int(final["seen"]) == sum(line["used"] for line in lines)


@pytest.mark.parametrize("signal_name", ["sigterm", "sigint"])
def test_a_signal_saves_and_stops(signal_name: str, make_trainer: Make, uncut: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_trainer(train={"keep": 9}, toy={signal_name: [5]}).run(resume=False)
    run = tmp_path / "run"
    assert [step for step, _ in checkpoints(run)] == [
        0,
        4,
        7,
    ]  # sent in step 5 (from 0), seen as step 6 begins
    assert not (run / "final").exists()
    make_trainer(train={"keep": 9}).run(resume=True)
    assert differing(tensors(uncut, 12), tensors(run, 12)) == []
    assert log(uncut) == log(run)


def test_a_signal_in_the_last_step_changes_nothing(make_trainer: Make, tmp_path: Path) -> None:
    assert make_trainer(toy={"sigterm": [11]}).run(resume=False) == tmp_path / "run" / "final"


def test_a_second_start_is_refused_and_a_finished_run_finishes_again(make_trainer: Make, uncut: Path) -> None:
    before = load_file(uncut / "final" / "model.safetensors")
    with pytest.raises(UserError, match=r"holds a run at step 12; .* --resume"):
        make_trainer("uncut", train={"keep": 9}).run(resume=False)
    make_trainer("uncut", train={"keep": 9}).run(resume=True)
    assert differing(before, load_file(uncut / "final" / "model.safetensors")) == []
    assert len(log(uncut)) == 12


def test_another_config_is_named_key_by_key(make_trainer: Make, uncut: Path) -> None:
    changed = {"keep": 1, "save_every": 2, "log_every": 3, "threads": 1, "workers": 1, "lr": 0.5, "seed": 8}
    with pytest.raises(UserError) as caught:
        make_trainer("uncut", train=changed, data={"images": 5}).run(resume=True)
    text = str(caught.value)
    assert "data.images (6 -> 5), train.lr (0.01 -> 0.5), train.seed (7 -> 8);" in text
    assert "keep" not in text


@pytest.mark.parametrize("damage", ["missing", "cut", "list"])
def test_a_run_without_its_config_is_told(damage: str, make_trainer: Make, uncut: Path) -> None:
    path = uncut / "config.toml"
    path.unlink() if damage == "missing" else path.write_text({"cut": "a = ", "list": "[[]"}[damage])
    with pytest.raises(UserError, match=r"config.toml' must be the config of the run that --resume"):
        make_trainer("uncut", train={"keep": 9}).run(resume=True)


@pytest.mark.parametrize("resume", [True, False])
def test_damaged_checkpoints_are_not_written_over(resume: bool, make_trainer: Make, uncut: Path) -> None:
    for step in (0, 4, 8, 12):
        (uncut / f"checkpoint-{step}" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="each is damaged, checkpoint-12 too; choose another `out`"):
        make_trainer("uncut", train={"keep": 9}).run(resume=resume)


def test_a_damaged_newest_checkpoint_costs_one_interval(
    make_trainer: Make, uncut: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(uncut, tmp_path / "copy"))
    (copy / "checkpoint-12" / "state.safetensors").write_bytes(b"x")
    trainer = make_trainer("copy", train={"keep": 9})
    trainer.run(resume=True)
    assert len(trainer.recipe.batches) == 4
    assert differing(tensors(uncut, 12), tensors(copy, 12)) == []


def test_the_log_is_cut_where_the_checkpoint_is(make_trainer: Make, tmp_path: Path) -> None:
    cut(make_trainer(), 7)
    path = tmp_path / "run" / "log.jsonl"
    assert len(path.read_text().splitlines()) == 7  # written step by step, so ahead of the checkpoint at 4
    with path.open("a") as file:
        file.write('{"step": 8, "lo')
    trainer = make_trainer()
    trainer._open(True)
    assert trainer.step == 4
    assert [line["step"] for line in log(tmp_path / "run")] == [1, 2, 3, 4]
    assert not list((tmp_path / "run").glob(".*"))


def test_a_full_disk_ends_the_run_with_one_line(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both too little space seen beforehand and a write that fails. Saved checkpoints stay."""
    trainer = make_trainer(toy={"full_disk": True})
    with pytest.raises(UserError, match="No space left on device; saved is nothing yet: make room there"):
        trainer.run(resume=False)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoint-0",
        "config.toml",
        "log.jsonl",
        "run.html",
    ]

    def full(folder: Path, needed: int) -> None:
        raise UserError(f"the disk has {needed - 1} bytes left")

    monkeypatch.setattr(loop, "require_space", full)
    with pytest.raises(UserError, match="bytes left"):
        make_trainer("other").run(resume=False)
    assert sorted(p.name for p in (tmp_path / "other").iterdir()) == ["config.toml"]


def test_sheets_show_the_averages_and_disturb_nothing(
    make_trainer: Make, uncut: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(train={"keep": 9, "sample_every": 4})
    shown: list[Tensor] = []

    def sheet(step: int) -> Any:
        torch.rand(5)  # a recipe may draw there
        shown.append(trainer.modules["network"].last.weight.detach().clone())
        return torch.zeros(4, 6, 3, dtype=torch.uint8).numpy()

    trainer.recipe.sample_sheet = sheet
    trainer.run(resume=False)
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "step-12.png",
        "step-4.png",
        "step-8.png",
    ]
    for step, weight in zip((4, 8, 12), shown, strict=True):
        assert torch.equal(weight, tensors(run, step)["average/network/last.weight"])
        assert differing(tensors(uncut, step), tensors(run, step)) == []


def test_nothing_to_train_is_an_error(make_trainer: Make, toy: ModuleType, monkeypatch: Any) -> None:
    monkeypatch.setattr(toy.ToyRecipe, "parameter_groups", lambda self: [])
    with pytest.raises(UserError, match="leaves nothing to train"):
        make_trainer()


def test_a_checkpoint_of_another_recipe_is_told(make_trainer: Make, uncut: Path) -> None:
    trainer = make_trainer("uncut", train={"keep": 9})
    modules = {"vae": trainer.modules["network"]}
    with pytest.raises(UserError, match="has no module 'vae'; it belongs to another recipe"):
        state.load_state(uncut / "checkpoint-12", modules=modules, averages={}, turns=trainer.turns)
