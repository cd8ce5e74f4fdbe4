"""Rates that follow from the time of a network whose other rates are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ea_runtime.generation import measure_networks
from ea_runtime.generation.measure_networks import (
    _forecast,
    _solve,
    _with_memory,
    _work,
    bytes_of_networks,
    opening_seconds,
    runs,
    starts,
    works_of_runs,
)
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.planning.calibration import Calibration, write_calibration
from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae

WORK = {"linear": 4e9, "calls": 500, "unknown": 7.0}


@pytest.mark.parametrize(
    ("seconds", "rate"),
    [
        (5.0, 500.0),  # linear layers take 4 s of it
        (4.5, 1000.0),
        (4.01, 2000.0),  # at most ten times that of the single operation
        (400.0, 20.0),  # at least a tenth
        (3.0, 200.0),  # the others alone take longer: a busy machine
    ],
)
def test_the_rate_that_is_unknown_follows_from_the_time(seconds: float, rate: float) -> None:
    rates = {"linear": 1e9, "calls": 1.0}
    _solve(rates, {"calls": 200.0}, "calls", WORK, seconds)
    assert rates == {"linear": 1e9, "calls": pytest.approx(rate)}


def test_a_start_is_what_the_first_picture_takes_beyond_its_work() -> None:
    rates = dict.fromkeys(("linear", "attention", "convolution", "winograd", "moved", "swept", "calls"), 1e12)
    rates |= {"disk": 1e12, "imports": 1.0}
    found = starts("cpu", rates, {"text": 0.5, "denoising": 0.0, "nothing": 3.0})
    assert found["text"] == pytest.approx(0.5, abs=0.01)
    assert found["denoising"] == 0.0
    assert "nothing" not in found
    plan = Calibration(rates=rates, starts=found)
    assert plan.seconds("text", {}) == found["text"]
    assert plan.seconds("decoding", {}) == 0.0


def test_an_earlier_calibration_does_not_count_as_the_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EA_CACHE", str(tmp_path))
    found = bytes_of_networks("cpu")
    assert write_calibration("cpu", Calibration(program_bytes=900_000_000))
    assert bytes_of_networks("cpu") == found


def test_a_later_run_has_no_work_of_the_first_one() -> None:
    found = _forecast("cpu", {"num_frames": 18})
    assert {"touched", "writers"} & set(found.phase("decoding").work) == {"touched"}  # no file is written
    assert not {"touched", "writers"} & set(_work(found, "decoding"))
    assert _work(found, "decoding")["convolution"] == found.phase("decoding").work["convolution"]


def test_opening_a_video_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert 0 < opening_seconds() < 60
    assert not list(tmp_path.iterdir())


def test_memory_is_there_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[int] = []
    real = torch.Tensor.fill_
    monkeypatch.setattr(torch.Tensor, "fill_", lambda one, value: filled.append(len(one)) or real(one, value))
    monkeypatch.setattr(measure_networks, "_MEMORY", 4096)
    assert _with_memory(lambda: 0.5 * sum(filled)) == 2048


def test_a_chunk_of_noise_is_decoded() -> None:
    pipe, decoded = VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder(num_tokens=40)), []
    real = pipe.iter_frames
    pipe.iter_frames = lambda latents: decoded.append(tuple(latents.shape)) or real(latents)  # pyright: ignore
    assert runs(pipe, "cuda")["convolution"]() > 0
    assert decoded == [pipe.geometry.latent_shape(1, 9, 128, 128)]


def test_rates_are_those_that_the_runs_were_made_with() -> None:
    known = {
        "convolution": 80e9,
        "winograd": 55e9,
        "transformed": 55e9 / 15,
        "wide": 130e9,
        "linear": 100e9,
        "attention": 80e9,
        "moved": 5e9,
        "swept": 27e9,
        "calls": 26e3,
        "mapped": 15e9,
        "mappings": 2500.0,
        "filters": 25e9,
        "weights": 20e9,
        "reads": 1500.0,
    }
    seconds = {
        kind: sum(amount / known[name] for name, amount in work.items() if name in known)
        for kind, work in works_of_runs("cpu").items()
    }
    single = known | {"convolution": 130e9, "winograd": 130e9, "moved": 40e9, "calls": 75e3}
    del single["transformed"], single["reads"]
    found = measure_networks.rates("cpu", single, seconds)
    assert found.pop("reads") == pytest.approx(known.pop("reads"), rel=0.25)  # a small part of its run
    assert found == pytest.approx(known, rel=0.1)
