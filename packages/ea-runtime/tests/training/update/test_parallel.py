"""Batches shared by two processes, with DDP and FSDP: results equal one process's, and checkpoints suit either.

The processes are forked from this one and find each other like torchrun's, by RANK, WORLD_SIZE and MASTER_*.
"""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ea_runtime.errors import UserError
from ea_runtime.machine.processes import process_group, world
from ea_runtime.training.run.checkpoints import checkpoints

Make = Callable[..., Any]
pytestmark = [pytest.mark.forks, pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")]
ONE: dict[str, Any] = {
    "train": {"steps": 10, "batch_size": 5, "save_every": 4, "keep": 9, "bad_share": 1.0},
    "data": {"dropout": False},
}
FSDP = {"parallel": "fsdp", "muon_lr": 0.0}


def together(work: Callable[[], object], size: int = 2) -> list[str]:
    """Calls `work` in processes that share batches; returns the error of each, "" for none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    children = []
    for rank in range(size):
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.environ.update(names, RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=str(port))
            torch.set_num_threads(1)
            said = ""
            try:
                with process_group(1, []) as found:
                    assert (found, size) == world()
                    torch.distributed.barrier()  # a process that fails at once must not leave before all have met
                    work()
            except BaseException as error:
                said = str(error) if isinstance(error, UserError) else traceback.format_exc()
            os.write(writes, said.encode()[-4000:])
            os._exit(0)
        os.close(writes)
        children.append((pid, reads))
    told = []
    for pid, reads in children:
        with os.fdopen(reads) as pipe:
            told.append(pipe.read())
        os.waitpid(pid, 0)
    return told


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {key: {**one.get(key, {}), **other.get(key, {})} for key in one.keys() | other.keys()}


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_alike(one: Path, two: Path, *names: str) -> None:
    """Compares losses, norms and the final weights."""
    lines = log(one), log(two)
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for a, b in zip(*lines, strict=True):
        for name in ("loss", "mean", "grad_norm", "samples", "used", "bad", *names):
            assert b.get(name) == pytest.approx(a.get(name), abs=1e-5), (a["step"], name)
    weights = [load_file(run / "final" / "model.safetensors") for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weights[0][k], weights[1][k], atol=1e-4) for k in weights[0] if k != "seen")


DDP_RUNS: dict[str, dict[str, Any]] = {
    "plain": {},  # with batches of one, of which one process gets none
    "two turns, parts, phases": {
        "train": {"accumulate": 2},
        "data": {"critic": True, "critic_start": 3, "phase_at": 5},
    },
    "bad samples, workers": {"train": {"workers": 1}, "data": {"bad": [1, 3, 5, 7, 9, 11, 13]}},
}


@pytest.mark.parametrize("name", DDP_RUNS)
def test_ddp_computes_what_one_computes(name: str, make_trainer: Make, tmp_path: Path) -> None:
    run = merged(ONE, DDP_RUNS[name])
    make_trainer("one", **run).run(resume=False)
    assert together(lambda: make_trainer("two", **run).run(resume=False)) == ["", ""]
    names = ("gap", "loss_critic", "grad_norm_critic") if "turns" in name else ()
    assert_alike(tmp_path / "one", tmp_path / "two", *names)


def test_parts_are_the_whole(make_trainer: Make, tmp_path: Path) -> None:
    """Draws belong to samples: accumulation changes rounding only."""
    make_trainer("one", **ONE).run(resume=False)
    make_trainer("two", **merged(ONE, {"train": {"accumulate": 3}})).run(resume=False)
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_go_on_to_the_bit_and_one_goes_on_with_theirs(
    parallel: str, make_trainer: Make, tmp_path: Path
) -> None:
    """Trained, saved, killed and resumed by two; then the checkpoint of two is resumed by one."""
    run = merged(ONE, {"train": FSDP if parallel == "fsdp" else {}})
    make_trainer("one", **run).run(resume=False)
    assert together(lambda: make_trainer("two", **run).run(resume=False)) == ["", ""]
    assert_alike(tmp_path / "one", tmp_path / "two")
    states = [load_file(tmp_path / name / "checkpoint-8" / "state.safetensors") for name in ("one", "two")]
    assert {key: value.shape for key, value in states[0].items()} == {
        k: v.shape for k, v in states[1].items()
    }

    def cut() -> None:
        trainer = make_trainer("cut", **run)
        loss = trainer.recipe.loss

        def dying(batch: Any, generator: Any, step: int, turn: str) -> Any:
            if step == 6:
                raise MemoryError
            return loss(batch, generator, step, turn)

        trainer.recipe.loss = dying
        trainer.run(resume=False)

    assert all("MemoryError" in said for said in together(cut))
    assert [step for step, _ in checkpoints(tmp_path / "cut")] == [0, 4]
    assert together(lambda: make_trainer("cut", **run).run(resume=True)) == ["", ""]
    for folder in ("checkpoint-10", "final"):
        for path in (tmp_path / "two" / folder).rglob("*.safetensors"):
            one, other = load_file(path), load_file(tmp_path / "cut" / path.relative_to(tmp_path / "two"))
            assert [key for key in one if not torch.equal(one[key], other[key])] == []
    for name in ("checkpoint-8", "checkpoint-10", "final"):
        (tmp_path / "two" / name).rename(tmp_path / f"old-{name}")
    make_trainer("two", **run).run(resume=True)
    assert_alike(tmp_path / "one", tmp_path / "two")


def test_fsdp_with_parts_and_sheets(make_trainer: Make, tmp_path: Path) -> None:
    """Shares of different lengths stay in step; sheets are drawn from whole weights."""
    more = {"train": {**FSDP, "accumulate": 2, "sample_every": 5}, "data": {"bad": [1, 3, 5, 7, 9, 11, 13]}}
    run = merged(ONE, more)
    make_trainer("one", **run).run(resume=False)
    assert together(lambda: make_trainer("two", **run).run(resume=False)) == ["", ""]
    assert_alike(tmp_path / "one", tmp_path / "two")
    sheets = [(tmp_path / name / "samples" / "step-10.png").read_bytes() for name in ("one", "two")]
    assert sheets[0] == sheets[1]


def test_fsdp_in_bf16(make_trainer: Make, tmp_path: Path) -> None:
    run = merged(ONE, {"train": {**FSDP, "dtype": "bf16"}})
    make_trainer("one", **run).run(resume=False)
    assert together(lambda: make_trainer("two", **run).run(resume=False)) == ["", ""]
    for a, b in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=0.02)


@pytest.mark.parametrize(
    ("train", "data", "told"),
    [
        ({"parallel": "fsdp"}, {}, "Muon needs whole matrices; set `train.muon_lr` to 0, or use ddp"),
        ({**FSDP, "optimizer": "adamw8bit"}, {}, "8-bit Adam cannot follow"),
        ({**FSDP, "dtype": "fp16"}, {}, "scaled fp16 cannot follow; set `train.dtype` to bf16"),
        (FSDP, {"critic": True}, "fsdp is for recipes with one turn"),
    ],
)
def test_what_fsdp_refuses(
    train: dict[str, Any], data: dict[str, Any], told: str, make_trainer: Make
) -> None:
    said = together(lambda: make_trainer(train=train, data=data))
    assert all(told in one and "\n" not in one for one in said)


def test_accelerate_told_otherwise(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    said = together(lambda: make_trainer())
    assert len(said) == 2
    assert all("use FSDP, but `train.parallel` is 'ddp'; set it to 'fsdp'" in one for one in said)
