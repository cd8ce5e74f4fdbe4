"""The progress shown during training."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from ea_runtime.training.run import progress
from ea_runtime.training.run.progress import TrainingProgress


def line(step: int, loss: float | None, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, "lr": 1e-3, "samples": 8, "seconds": 0.5, **more}


def show(shown: TrainingProgress, row: dict[str, Any]) -> None:
    shown.take(row)
    shown.show(row)


def test_a_line_now_and_then_off_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    with TrainingProgress(100, 0) as shown:
        for step in range(1, 5):
            show(shown, line(step, 2.0, memory=1234.0))
            clock += 20.0
    out = capsys.readouterr()
    assert out.out == ""
    first, second = out.err.splitlines()
    assert first == "step 1/100  loss 2.0000  lr 1.00e-03  16.0 samples/s  1.23 GB  50 s left"
    assert second.startswith("step 3/100")


def test_one_live_line_on_a_terminal() -> None:
    screen = io.StringIO()
    shown = TrainingProgress(100, 90)
    shown.bar = type(shown.bar)(
        *shown.bar.columns, console=Console(file=screen, force_terminal=True, width=160)
    )
    shown.task = shown.bar.add_task("training", total=100, completed=90, line="")
    shown.live = True
    with shown:
        show(shown, line(91, 2.0))
        show(shown, line(92, 1.0))
    text = screen.getvalue()
    assert "92/100" in text
    assert "loss 1.9800" in text
    assert "4 s left" in text


def test_what_went_wrong_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1.0)
    with TrainingProgress(100_000, 0) as shown:
        show(shown, line(1, None, skipped=True))
        show(shown, line(2, 1.0, skipped=False, bad=0, rollbacks=0, wait=0.01))
        show(shown, line(3, 1.0, skipped=True, bad=4, rollbacks=2, wait=0.4))
    first, second, third = capsys.readouterr().err.splitlines()
    assert "loss -" in first
    assert second.endswith("13.9 h left  1 skipped")
    assert third.endswith("80% waiting for data  2 skipped  2 rolled back  4 bad files")


def test_skipped_steps_count_though_no_line_is_shown_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(100, 0) as shown:
        for step in range(1, 10):
            shown.take(line(step, None, skipped=step in (3, 4)))
        show(shown, line(10, 1.0))
    assert capsys.readouterr().err.strip().endswith("left  2 skipped")


def test_a_skipped_step_does_not_spoil_the_mean() -> None:
    with TrainingProgress(100, 0, show=False) as shown:
        show(shown, line(1, float("nan")))
        assert shown.loss is None
        show(shown, line(2, 1.0))
        show(shown, line(3, float("inf")))
        show(shown, line(4, 2.0))
    assert shown.loss == pytest.approx(1.02)


def test_the_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(100, 0, show=False) as shown:
        show(shown, line(1, 1.0))
    assert capsys.readouterr() == ("", "")
