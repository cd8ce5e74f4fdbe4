"""`ea plan`, and the plan that `ea generate` makes first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ea_runtime.cli.main import run
from ea_runtime.generation.forecasts import Watch, forecast_request
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.resolve import resolve
from ea_runtime.models.layout import bundled_folder
from ea_runtime.planning import room
from ea_runtime.planning.calibration import Calibration, read_calibration, write_calibration
from ea_runtime.planning.forecast import Forecast

_FRESH = """
import sys
from ea_runtime.cli.main import run
code = run(["plan", "--num-frames", "18", "--json"])
print([name for name in ("torch", "diffusers", "transformers", "numpy") if name in sys.modules])
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EA_CACHE", str(tmp_path / "cache"))


def planned(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    code = run(["plan", "--device", "cpu", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    env = os.environ | {"EA_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", _FRESH], capture_output=True, text=True, env=env, check=True)
    *text, modules = done.stdout.splitlines()
    assert modules == "[]"
    assert [p["name"] for p in json.loads("\n".join(text))["phases"]] == [
        "loading",
        "text",
        "encoding",
        "denoising",
        "decoding",
    ]


def test_a_plan_follows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    code, plan = planned(capsys, "--num-frames", "18", "--size", "256x192", "--steps", "4")
    assert code == 0
    assert plan["fits"]
    assert (plan["frames"], plan["width"], plan["height"], plan["steps"]) == (18, 256, 192, 4)
    denoising = {phase["name"]: phase for phase in plan["phases"]}["denoising"]
    _, alone = planned(capsys, "--num-frames", "18", "--size", "256x192", "--steps", "4", "--guidance", "1")
    half = {phase["name"]: phase for phase in alone["phases"]}["denoising"]
    assert 0.4 < half["flops"] / denoising["flops"] < 0.6
    _, image = planned(capsys, "--num-frames", "18", "--batch", "3", "--no-smooth")
    assert image["batch"] == 3


def test_a_plan_that_cannot_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["plan", "--device", "cpu", "--num-frames", "144", "--size", "1024x1024", "--memory", "2GB"])
    told = capsys.readouterr().out
    assert code == 1
    assert "144 frames of 1024x1024 need" in told
    assert "the largest that fits: num_frames" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "much"], "`memory` must be a size such as 24GiB or 800MB, got 'much'"),
        (["--batch", "0"], "`batch` must be a whole number from 1 to 1024, got 0"),
        (["--num-frames", "20"], "`num_frames` must be 1 or a multiple of 9, got 20; use 18 or 27"),
        (["--device", "tpu"], "`device` must be cpu, cuda, cuda:N or mps, got 'tpu'"),
        (["--model", "nowhere"], "no model is called 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert run(["plan", *options]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("transformer", {"num_layers": "many"}),
        ("transformer", {"motion_module_kwargs": [1]}),
        ("vae", {"block_out_channels": ["wide"]}),
        ("text_encoder", {"d_ff": [1]}),
        ("transformer", {"num_layers": -3}),
    ],
)
def test_a_config_of_nonsense_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, changes: dict[str, Any]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder("tiny"), folder)
    config = folder / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"ch": None, "ch_mult": None} | changes))
    assert run(["plan", "--model", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_generate_refuses_what_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_memory_of_host", lambda: 700_000_000)
    words = ["generate", "a circle", "--device", "cpu", "--num-frames", "72", "--size", "256x256"]
    assert run([*words, "-o", str(tmp_path / "out.mp4")]) == 2
    told = capsys.readouterr().err
    assert "error: 72 frames of 256x256 need" in told
    assert "--force tries it all the same" in told
    assert not list(tmp_path.glob("out*"))


def tiny_forecast(monkeypatch: pytest.MonkeyPatch, free: int, **settings: Any) -> Forecast:
    monkeypatch.setattr(room, "free_memory_of_host", lambda: free)
    resolved = resolve(ModelRequest(prompt="a circle", model="tiny", device="cpu", **settings))
    return forecast_request(resolved.request, bundled_folder("tiny"))


def test_the_way_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tiled: list[bool] = []

    class Vae:
        def enable_tiling(self) -> None:
            tiled.append(True)

    class Pipe:
        text: object = "an encoder"
        vae = Vae()

    pipe: Any = Pipe()
    steps: list[str] = []
    plenty = Watch(tiny_forecast(monkeypatch, 10**11, num_frames=9, height=1024, width=1024))
    plenty.prepare(pipe)
    plenty.on_step(pipe, lambda phase, done, total: steps.append(phase))("denoising", 0, 1)
    assert (tiled, pipe.text) == ([], "an encoder")
    scarce = Watch(tiny_forecast(monkeypatch, 2 * 10**9, num_frames=9, height=1024, width=1024))
    scarce.prepare(pipe)
    step = scarce.on_step(pipe, lambda phase, done, total: steps.append(phase))
    step("text", 1, 1)
    assert (tiled, pipe.text) == ([True], "an encoder")
    if scarce.forecast.way.drops_text:
        step("denoising", 0, 1)
        assert pipe.text is None


def test_a_run_teaches_the_next_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny_forecast(monkeypatch, 10**11, num_frames=1)
    program = read_calibration("cpu").program
    line = Watch(before).learn({"denoising": 1.0}, before.peak + 50_000_000, program)
    assert line.startswith(f"plan: peak {before.peak / 1e6:.0f} MB predicted, ")
    after = tiny_forecast(monkeypatch, 10**11, num_frames=1)
    assert after.peak == before.peak + 50_000_000


def test_a_run_is_compared_with_all_that_a_plan_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {
        "linear": 1e11,
        "convolution": 1e11,
        "attention": 1e11,
        "disk": 1e9,
        "imports": 2.0,
        "calls": 1e5,
    }
    write_calibration("cpu", Calibration(rates=rates))
    forecast = tiny_forecast(monkeypatch, 10**11, num_frames=1)
    planned = {phase.name: phase.seconds or 0.0 for phase in forecast.phases}
    assert planned["loading"] > rates["imports"]
    timings = {"imports": 1.5, "loading": planned["loading"] - 1.5, "denoising": planned["denoising"]}
    timings |= {"decoding": planned["decoding"] / 2, "writing": planned["decoding"] / 2, "total": 9.0}
    assert Watch(forecast).learn(timings, forecast.peak, 0).endswith(" measured (+0%)")
    assert read_calibration("cpu").runs[-1]["factors"] == pytest.approx(
        dict.fromkeys(timings.keys() & planned.keys(), 1.0)
    )
