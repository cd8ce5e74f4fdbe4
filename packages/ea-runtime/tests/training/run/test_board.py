"""TensorBoard's event files: their contents, and each step shown once after resuming."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorboardX")

from ea_runtime.training.run import board as board_module
from ea_runtime.training.run.board import Board


def shown(folder: Path) -> tuple[dict[str, dict[int, list[float]]], dict[str, list[int]]]:
    """(scalars, pictures) by name as TensorBoard shows them, without points that a later session purges."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    scalars: dict[str, dict[int, list[float]]] = {}
    pictures: dict[str, list[int]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*"), key=lambda f: f.name):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.session_log.status == SessionLog.START:
                for table in scalars.values():
                    for step in [s for s in table if s >= event.step]:
                        del table[step]
                pictures = {name: [s for s in steps if s < event.step] for name, steps in pictures.items()}
            for value in event.summary.value:
                if value.HasField("image"):
                    pictures.setdefault(value.tag, []).append(event.step)
                else:
                    scalars.setdefault(value.tag, {}).setdefault(event.step, []).append(value.simple_value)
    return scalars, pictures


def line(step: int, loss: float) -> dict[str, object]:
    return {
        "step": step,
        "loss": loss,
        "lr": 1e-3,
        "skipped": not math.isfinite(loss),
        "samples": 8,
        "seconds": 0.5,
        "used": 8,
        "wait": 0.0,
        "rollbacks": 0,
        "memory": 100.0,
        "words": "left out",
    }


def write(folder: Path, done: int, until: int, base: float) -> None:
    with Board(folder, done) as board:
        for step in range(done + 1, until + 1):
            board.line(line(step, base + step))
            if step % 2 == 0:
                board.sheet(step, np.full((4, 6, 3), step, np.uint8))


def test_every_number_of_a_line_and_the_sheets(tmp_path: Path) -> None:
    write(tmp_path, 0, 4, 0.0)
    with Board(tmp_path, 4) as board:
        board.line(line(5, math.nan))
        board.line(line(6, 6.0) | {"val_loss": 0.5, "val_loss_t200": 0.25, "eval_flicker": 2.0})
    scalars, pictures = shown(tmp_path)
    assert (scalars.pop("validation/loss"), scalars.pop("validation/loss_t200")) == ({6: [0.5]}, {6: [0.25]})
    assert scalars.pop("evaluation/flicker") == {6: [2.0]}
    assert scalars["train/loss"].pop(6) == [6.0]
    assert scalars["train/loss"] == {1: [1.0], 2: [2.0], 3: [3.0], 4: [4.0]}
    assert scalars["train/skipped"][5] == [1.0]
    assert scalars["train/samples_per_second"][1] == [16.0]
    assert scalars.keys() == {
        f"train/{name}" for name in ("loss", "lr", "skipped", "rollbacks", "memory", "samples_per_second")
    }
    assert pictures == {"samples": [2, 4]}


def points(folder: Path) -> tuple[dict[int, list[float]], list[int]]:
    write(folder, 0, 7, 0.0)  # killed at step 7; the checkpoint is of step 4
    write(folder, 4, 9, 100.0)
    scalars, pictures = shown(folder)
    return scalars["train/loss"], pictures["samples"]


def test_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    losses, pictures = points(tmp_path)
    assert losses == {step: [step + (100.0 if step > 4 else 0.0)] for step in range(1, 10)}
    assert pictures == [2, 4, 6, 8]


def test_a_rollback_shows_each_step_once(tmp_path: Path) -> None:
    with Board(tmp_path, 0) as board:
        for step in (1, 2, 3, 4, 2, 3, 4, 5):
            board.line(line(step, float(step)))
    losses = shown(tmp_path)[0]["train/loss"]
    assert losses == {step: [float(step)] for step in range(1, 6)}


def test_a_board_that_does_not_purge_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: steps 5 to 7 come twice."""
    import tensorboardX

    class Keeps(tensorboardX.SummaryWriter):
        def __init__(self, *args: object, purge_step: int | None = None, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(tensorboardX, "SummaryWriter", Keeps)
    assert board_module.Board is Board
    losses, pictures = points(tmp_path)
    assert [step for step, values in losses.items() if len(values) == 2] == [5, 6, 7]
    assert pictures != [2, 4, 6, 8]
