"""TensorBoard event files next to log.jsonl: every number of its lines, and the sample sheets."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

#: Numbers of a log line that a board does not need: its axis, and what it computes itself.
_LEFT_OUT = {"step", "seconds", "wait", "samples", "used"}
#: Groups of figures on a board, by the beginning of their names; all others are in `train`.
_KINDS = {"val_": "validation", "eval_": "evaluation"}


class Board:
    """Writes event files into `folder`, a run's.

    step: steps done when it is opened. Points of later steps that a killed run left are purged, since they are done
    again; so are those of steps that a rollback repeats.
    The files are written by tensorboardX, without TensorFlow; `tensorboard --logdir RUN` shows them.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(
            str(folder),
            purge_step=step + 1 if step else None,
            flush_secs=30,
            filename_suffix=f".{step:09}.{os.getpid()}",  # distinguishes files of one second, and sorts them
        )
        self._step = step

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def line(self, line: dict[str, Any]) -> None:
        """Adds a line of log.jsonl: finite numbers as scalars, true and false as 1 and 0."""
        step = line["step"]
        if step <= self._step:
            self._purge(step)
        self._step = step
        for name, value in line.items():
            if name in _LEFT_OUT or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            kind = next((one for one in _KINDS if name.startswith(one)), "")
            tag = f"{_KINDS[kind]}/{name[len(kind) :]}" if kind else f"train/{name}"
            self._writer.add_scalar(tag, float(value), step)
        if line.get("seconds", 0) > 0:
            self._writer.add_scalar("train/samples_per_second", line["samples"] / line["seconds"], step)

    def sheet(self, step: int, array: np.ndarray, name: str = "samples") -> None:
        """array: a picture, uint8 (H, W, 3)."""
        self._writer.add_image(name, array, step, dataformats="HWC")

    def _purge(self, step: int) -> None:
        """Tells readers to drop what they have of `step` and later."""
        from tensorboardX.proto import event_pb2

        proto: Any = event_pb2  # made by protobuf: no checker sees what is in it
        event = proto.Event(step=step, session_log=proto.SessionLog(status=proto.SessionLog.START))
        assert self._writer.file_writer is not None
        self._writer.file_writer.add_event(event, step=step)

    def close(self) -> None:
        """Writes what is buffered."""
        self._writer.close()
