"""run.html: the curves of a run, marks of what went wrong, and a file that needs no other."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from ea_runtime.errors import UserError
from ea_runtime.training.run.charts import HEIGHT, WIDTH, Line, draw_chart
from ea_runtime.training.run.history import History
from ea_runtime.training.run.page import RunPage
from ea_runtime.training.run.trackers import Tracking

Make = Callable[..., Any]


def line(step: int, loss: float | None, **more: Any) -> dict[str, Any]:
    usual = {"lr": 1e-3, "samples": 4, "seconds": 0.5, "memory": 900.0, "skipped": False, "rollbacks": 0}
    return {"step": step, "loss": loss, **usual, **more}


def write_log(folder: Path, lines: list[dict[str, Any]], name: str = "log.jsonl", torn: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(one) + "\n" for one in lines) + torn)


def test_a_run_writes_its_page_and_is_the_same_without(make_trainer: Make, tmp_path: Path) -> None:
    make_trainer("with", train={"page_every": 5, "sample_every": 4}).run(resume=False)
    make_trainer("without", train={"page_every": 0, "sample_every": 4}).run(resume=False)
    page = (tmp_path / "with" / "run.html").read_text()
    assert "finished" in page
    assert "12 of 12" in page
    assert 'http-equiv="refresh"' not in page
    assert not (tmp_path / "without" / "run.html").exists()
    one, other = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("with", "without"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    # it needs no other file and no script
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("data:image/webp") == 3  # steps 4, 8, 12


def test_a_run_that_stops_says_so(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer()
    one_step = trainer._one_step

    def stop_at_7(fetcher: Any) -> Any:
        trainer._stop = trainer.step == 6
        return one_step(fetcher)

    trainer._one_step = stop_at_7
    with pytest.raises(KeyboardInterrupt):
        trainer.run(resume=False)
    page = (tmp_path / "run" / "run.html").read_text()
    assert "stopped" in page
    assert "at step 7; --resume continues" in page


def test_curves_of_a_log(tmp_path: Path) -> None:
    lines = [line(step, 1 / step, loss_t000=2 / step, val_loss=3 / step) for step in range(1, 21)]
    lines[9] |= {"loss": None, "skipped": True}
    for one in lines[15:]:
        one["rollbacks"] = 1
    write_log(tmp_path / "run", lines, torn='{"step": 21, "lo')
    write_log(tmp_path / "run", [line(16, 5.0), line(17, 50.0)], "log-rollback-1.jsonl")
    history = History()
    history.read(tmp_path / "run")
    assert history.step == 20
    assert len(history.curves["loss"].steps) == 19
    assert list(history.skipped) == [10]
    assert history.rollbacks == [16]
    assert list(history.abandoned[0].values) == [5.0, 50.0]
    assert history.last("speed") == 8.0
    assert list(history.bins("loss")) == ["000"]
    assert history.before(10) == pytest.approx(1 / 9)
    # a rollback while the page is open: steps come again
    history.take(line(18, 0.5, rollbacks=2))
    assert list(history.curves["loss"].steps)[-2:] == [17, 18]
    assert list(history.abandoned[1].steps) == [18, 19, 20]
    page = RunPage(tmp_path / "run", {"run": {"recipe": "toy"}}, 40, 50)
    page.write()
    text = (tmp_path / "run" / "run.html").read_text()
    assert 'http-equiv="refresh"' in text
    assert "step 10 was skipped" in text
    assert "back at step 16" in text
    assert "given up after a spike" in text
    assert "20 of 40" in text
    assert "10 s" in text  # 20 steps of half a second are left


def test_names_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "<b>x"
    write_log(folder, [line(1, 0.5)])
    RunPage(folder, {"run": {"recipe": "<i>"}}, 2, 1).write()
    text = (folder / "run.html").read_text()
    assert "<b>x" not in text
    assert "&lt;b&gt;x: &lt;i&gt;" in text


def test_charts_stay_in_their_box_and_small() -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(1, 100_001.0)
    chart = draw_chart(
        "Loss", [Line("loss", steps, rng.uniform(1e-4, 9, 100_000))], 100_000, marks=[(5, "x")]
    )
    assert chart is not None
    curve = chart.curves[0]
    assert len(curve["path"]) + len(curve["band"]) < 20_000
    numbers = [tuple(map(float, pair.split())) for pair in re.findall(r"[\d.]+ [\d.]+", curve["band"])]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in numbers)
    assert [tick["text"] for tick in chart.ticks_y] == ["0.1", "1"]
    flat = draw_chart("Rate", [Line("rate", steps[:3], np.full(3, 2.0))], 3)
    assert flat is not None
    assert draw_chart("Nothing", [Line("none", steps[:0], steps[:0])], 3) is None
    spiked = draw_chart(
        "Loss", [Line("up", steps[:2], np.array([9e9, 1e10]), dim=True), Line("a", steps[:2], np.ones(2))], 2
    )
    assert spiked is not None  # what was given up does not set the scale
    assert max(float(str(tick["text"]).rstrip("kMG")) for tick in spiked.ticks_y) < 2


def test_trackers_get_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[dict[str, Any], int]] = []
    fake: Any = ModuleType("wandb")
    fake.__spec__ = object()
    fake.config = type(
        "Config", (), {"update": staticmethod(lambda values, **more: seen.append((values, 0)))}
    )
    run = type(
        "Run",
        (),
        {"log": lambda self, values, step: seen.append((values, step)), "finish": lambda self: None},
    )
    fake.init = lambda **more: seen.append((more, -1)) or run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Tracking(["wandb"], tmp_path / "mine", {"train": {"lr": 0.1, "betas": [1, 2]}}) as tracking:
        tracking.line(line(3, 0.5, grad_norm=float("nan")))
    assert not PartialState._shared_state
    assert seen[0][0]["name"] == "mine"
    assert seen[1][0] == {"train.lr": 0.1, "train.betas": "[1, 2]"}
    assert seen[2][1] == 3
    assert seen[2][0]["loss"] == 0.5
    assert "grad_norm" not in seen[2][0]
    with pytest.raises(UserError, match=r"`train.trackers` names 'trackio'.*uv pip install trackio"):
        Tracking(["trackio"], tmp_path, {})
