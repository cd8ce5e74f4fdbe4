"""What a person sees while training."""

from __future__ import annotations

from typing import Any

import pytest

from ea_runtime.training import progress
from ea_runtime.training.progress import TrainingProgress


def line(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "loss": loss, "lr": 1e-3, "samples": 8, "seconds": 0.5}


def test_a_line_now_and_then_off_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    with TrainingProgress(100, 0) as shown:
        for step in range(1, 5):
            shown.show(line(step, 2.0))
            clock += 20.0
    out = capsys.readouterr()
    assert out.out == ""
    first, second = out.err.splitlines()
    assert first.startswith("step 1/100  loss 2.0000  lr 1.00e-03  16.0 samples/s  0.8 min left")
    assert second.startswith("step 3/100")


def test_a_skipped_step_does_not_spoil_the_mean() -> None:
    with TrainingProgress(100, 0, show=False) as shown:
        shown.show(line(1, float("nan")))
        assert shown.loss is None
        shown.show(line(2, 1.0))
        shown.show(line(3, float("inf")))
        shown.show(line(4, 2.0))
    assert shown.loss == pytest.approx(1.02)


def test_the_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(100, 0, show=False) as shown:
        shown.show(line(1, 1.0))
    assert capsys.readouterr() == ("", "")
