"""Engines against plain eager PyTorch: a denoising step, decoding and a whole generation with `tiny`.

On a CPU that is ONNX Runtime; on a GPU also TensorRT, if installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from baselines import dit, vae
from conftest import Row, compare
from networks import known_latents, noise

PROMPT, SEED = "a red circle moves right", 43
STEPS = 20
WHAT = ("a step with guidance", "decoding 18 frames, plain", f"18 frames, 64x64, {STEPS} steps, plain")
GPU_ENGINES = ("onnx", "trt")


def rows_of(engine: str, folder: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Exports `tiny` and compares the bundle with the same networks written as plain code."""
    from ea_runtime import VideoPipeline
    from ea_runtime.export.make import ExportRequest, export_bundle
    from ea_runtime.generation.denoise import plan_steps
    from ea_runtime.generation.requests import check_sampler

    monkeypatch.setenv("EA_STATE_DIR", str(folder / "state"))
    bundle = export_bundle(ExportRequest("tiny", str(folder / engine), target=engine, parity="off")).folder
    plain = VideoPipeline.from_pretrained("tiny", device=device, dtype="float32")
    pipe = VideoPipeline.from_pretrained("tiny", engine=engine, bundle=bundle, device=device)
    told = plain.text.encode(["", PROMPT])
    guidance = plain.defaults.guidance
    x, z = noise(1, 4, 6, 8, 8, device=device), noise(1, 4, 6, 8, 8, device=device)

    both = torch.cat([x, x])
    known = known_latents(plain, num_frames=18, height=64, width=64)

    def eager_step(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return dit.step(plain.denoiser, x, timestep[None], told.embeds, told.mask, guidance, known)

    def step() -> torch.Tensor:
        timesteps = torch.full((2,), 500.0)
        out = pipe.denoiser(
            both, timesteps, told.embeds, told.mask, inpaint_latents=torch.cat([known, known])
        ).sample
        without, with_text = out[:, :4].chunk(2)
        return without + guidance * (with_text - without)

    def eager_video() -> torch.Tensor:
        scheduler = plan_steps(check_sampler("dpm++"), plain.scheduler_config, STEPS)
        x = torch.randn((1, 4, 6, 8, 8), generator=torch.Generator().manual_seed(SEED)).to(device)
        x = x * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            predicted = eager_step(scheduler.scale_model_input(x, timestep), timestep.to(device))
            x = scheduler.step(predicted, timestep, x, return_dict=False)[0]
        frames = vae.decode_video(plain.vae, x / plain.geometry.scale, smooth=False)
        return ((frames + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 4, 1).double().cpu()

    def video() -> torch.Tensor:
        made = pipe(PROMPT, seed=SEED, num_inference_steps=STEPS, smooth=False)
        assert made.frames is not None
        return torch.from_numpy(made.frames).double()

    where = pipe.engine.describe()
    return [
        compare(
            f"{where}: tiny, {WHAT[0]}", lambda: eager_step(x, torch.tensor(500.0, device=device)), step, 9
        ),
        compare(
            f"{where}: tiny, {WHAT[1]}",
            lambda: vae.decode_video(plain.vae, z, smooth=False),
            lambda: pipe.vae.decode_video(z, smooth=False).to(device),
            3,
        ),
        compare(f"{where}: tiny, {WHAT[2]}", eager_video, video, 3),
    ]


def test_onnx_runtime(benchmark: Any, report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    rows = benchmark.pedantic(lambda: rows_of("onnx", tmp_path, "cpu", monkeypatch), rounds=1)
    cases = [f"{engine}: tiny, {what}" for engine in GPU_ENGINES for what in WHAT]
    report("engines", rows=rows, gpu=("test_engines.py", cases))
    assert all(row.error < 1e-2 for row in rows)


@pytest.mark.gpu
def test_engines_on_a_gpu(
    benchmark: Any, report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_gpu: None
) -> None:
    there = [name for name in GPU_ENGINES if find_spec("tensorrt" if name == "trt" else "onnxruntime")]
    rows = benchmark.pedantic(
        lambda: [row for name in there for row in rows_of(name, tmp_path, "cuda", monkeypatch)], rounds=1
    )
    report("engines_gpu", rows=rows)
    assert all(row.error < 5e-2 for row in rows)
