"""Samples that a run draws: judged by the metrics of `ea eval`, in its log and on its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ea_runtime.errors import UserError
from ea_runtime.evaluation.samples import SampleMetrics
from ea_runtime.plugins.host import get_host
from ea_runtime.training.recipe import Samples

Make = Callable[..., Any]
#: of ea-runtime, for anything that moves
MOVING = {"sharpness", "flicker", "stutter", "repeated", "frozen", "colour-drift", "seam"}


def drawn(num_frames: int, level: int = 0) -> Samples:
    """Two videos of noise, the second one darker: uint8 (2, T, 32, 32, 3)."""
    videos = np.random.default_rng(level).integers(0, 200, (2, num_frames, 32, 32, 3)).astype(np.uint8)
    videos[1] //= 2
    return Samples(np.zeros((4, 6, 3), np.uint8), videos, ["a red circle moves right", "something else"])


def test_a_run_judges_what_it_draws(make_trainer: Make, tmp_path: Path) -> None:
    finals = {}
    for name, judge in (("judged", SampleMetrics(print)), ("shown", None)):
        trainer = make_trainer(name, train={"sample_every": 4, "page_every": 1})
        trainer.recipe.sample_sheet = lambda step: drawn(12, step)
        trainer.inspector = type(trainer.inspector)(**(vars(trainer.inspector) | {"judge": judge}))
        trainer.run(resume=False)
        finals[name] = load_file(tmp_path / name / "final" / "model.safetensors")
    assert all(torch.equal(value, finals["shown"][key]) for key, value in finals["judged"].items())

    lines = [json.loads(line) for line in (tmp_path / "judged" / "log.jsonl").read_text().splitlines()]
    judged = {line["step"]: {k[5:]: v for k, v in line.items() if k.startswith("eval_")} for line in lines}
    assert [step for step, figures in judged.items() if figures] == [4, 8, 12]
    assert judged[8].keys() >= MOVING
    assert judged[8] == pytest.approx(SampleMetrics(print)(drawn(12, 8)))
    assert judged[8]["flicker"] != judged[4]["flicker"]
    page = (tmp_path / "judged" / "run.html").read_text()
    assert "Drawn samples: sharpness (levels²)" in page
    assert "Drawn samples" not in (tmp_path / "shown" / "run.html").read_text()


def test_pictures_have_no_motion_to_judge() -> None:
    figures = SampleMetrics(print)(drawn(1))
    assert "sharpness" in figures
    assert not figures.keys() & (MOVING - {"sharpness"})
    # the second prompt names no drawn scene
    assert figures.keys() - {"sharpness"} == {"adherence"} & set(get_host().records("metrics"))


def test_a_metric_that_fails_is_reported_once_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    judge = SampleMetrics(said.append)

    def refuses(clip: Any) -> float:
        raise UserError("`clip` is not for me")

    judge._judge._metrics[:] = [
        ("refuses", "video", refuses),
        ("fails", "video", lambda clip: 1 / 0),
        ("works", "video", lambda clip: float(len(clip.frames))),
    ]
    assert judge(drawn(3)) == judge(drawn(3)) == {"works": 3.0}
    assert len(said) == 2
    assert "not for me" in said[0]
    assert "'fails' failed: " in said[1]
