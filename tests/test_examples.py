"""examples/: every script runs, and its result is looked at."""

from __future__ import annotations

import functools
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from ea_data.draw.files import read_frames
from ea_runtime import VideoPipeline
from ea_runtime.cli.main import run
from ea_runtime.plugins.host import set_host
from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae, host_with

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Examples write where they are started, and set the process's host."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EA_STATE_DIR", str(tmp_path / "state"))
    yield
    set_host(None)


def load(name: str, folder: Path = EXAMPLES) -> ModuleType:
    spec = spec_from_file_location(f"example_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_video_from_a_prompt() -> None:
    load("generate").main(["a red circle moves right", "-o", "red.mp4", "--steps", "4"])
    frames = read_frames(Path("red.mp4"))
    assert frames.shape == (18, 64, 64, 3)
    assert frames.std() > 10, "the frames show something"


def test_a_batch_and_its_gallery() -> None:
    Path("prompts.txt").write_text("a red circle grows\n\na blue square grows\na red square grows\n", "utf-8")
    load("batch").main(
        ["prompts.txt", "--gallery", "all.gif", "--columns", "2", "--zoom", "1", "--steps", "2"]
    )
    clips = [read_frames(path) for path in sorted(Path("clips").iterdir())]
    assert len(clips) == 3
    gallery = read_frames(Path("all.gif"))
    assert gallery.shape == (18, 128, 128, 3)
    corners = (gallery[:, :64, :64], gallery[:, :64, 64:], gallery[:, 64:, :64])
    for corner, clip in zip(corners, clips, strict=True):  # each prompt is where it belongs
        near = [np.abs(corner.astype(int) - one).mean() for one in clips]
        assert min(near) == np.abs(corner.astype(int) - clip).mean()


def test_the_sampler_is_found_and_of_second_order() -> None:
    plugin = load("own_sampler")
    with host_with(plugin) as host:
        error = {"euler": 0.0, "ab2": 0.0}
        for name in error:
            error[name] = gaussian_error(host.get("samplers", name).build(), num_steps=60)
        assert error["ab2"] < error["euler"] / 5
        pipe = VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder())
        made = pipe("a red circle", sampler="ab2", num_inference_steps=3, output="latents").latents
    assert made is not None
    assert bool(np.isfinite(made.numpy()).all())


def gaussian_error(scheduler, num_steps: int) -> float:
    """Distance of a sampler's end from the exact solution for data of one point's neighbourhood, N(1, 0.5^2), where the
    noise of x at level s is s (x - 1) / (0.25 + s^2)."""
    scheduler.set_timesteps(num_steps)
    sigma = float(scheduler.sigmas[0])
    x = torch.full((1,), 1.0 + sigma, dtype=torch.float64)
    exact = 1 + sigma * 0.5 / (0.25 + sigma**2) ** 0.5
    for number, timestep in enumerate(scheduler.timesteps):
        level = scheduler.sigmas[number].double()
        scheduler.scale_model_input(x, timestep)
        x = scheduler.step(level * (x - 1) / (0.25 + level**2), timestep, x, return_dict=False)[0]
    return float((x - exact).abs())


def test_a_lora_from_pictures_of_ones_own(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(2):
        Image.new("RGB", (64, 64), (200, 40 * number, 0)).save(f"{number}.png")
        Path(f"{number}.txt").write_text("a red square, graphic\n", "utf-8")
    example = load("lora_from_pictures")
    assert example.list_pictures(tmp_path) == 2
    example.main(["-o", "made", "--pictures", ".", "--trigger", "graphic", "--steps", "2", "--batch", "2"])
    assert read_frames(Path("made/with-lora.mp4")).shape == (18, 64, 64, 3)
    assert run(["lora", "verify", "made/run/final/style.safetensors", "--no-text"]) == 0


def test_onnx_runtime_gives_pytorchs_video(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    # torch's exporter lists its thousand operators again for each graph: here once
    monkeypatch.setattr(
        ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib))
    )
    # exported layer by layer: one of a kind will do
    load("random_models", ROOT / "tests/export").write_small(Path("model"))
    assert load("onnx_runtime").main(["--model", "model", "--num-frames", "9", "--steps", "2"]) < 1.0


def test_the_list_names_every_example_and_nothing_else() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([\w./]+)\)", text))
    there = {path.name for path in EXAMPLES.glob("*.py")} | {
        f"{path.parent.name}/" for path in EXAMPLES.glob("*/*.py")
    }
    assert named == there
    commands = re.findall(r"examples/[\w/]+\.py", text)
    assert len(commands) == 6
    assert all((ROOT / path).is_file() for path in commands)
